"""LATENTS -> NEXT LATENT: the continuous language model, its heads, and the token baseline. Knows torch only."""
