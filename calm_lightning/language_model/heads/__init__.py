"""Generative heads: each draws z ~ p(. | h) for a hidden state h."""
