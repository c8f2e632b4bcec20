"""Continuous Autoregressive Language Models (CALM) as a Lightning experiment platform.

Text becomes shards, shards become chunks, the autoencoder makes latents, the language model draws
the next latent, draws become tokens, tokens are scored, score and FLOPs become a front, and the
sweep moves the front. Each noun of that sentence is a package; `docs/architecture.md` is the map.
"""

__version__ = "0.1.0"
