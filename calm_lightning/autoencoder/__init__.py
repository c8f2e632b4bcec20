"""CHUNKS <-> LATENTS: the variational autoencoder of K tokens and its objective. Knows torch only."""
