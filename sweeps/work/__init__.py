"""One trial: its autoencoder, its language model, its evaluations."""
