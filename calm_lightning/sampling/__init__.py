"""LATENTS -> TOKENS: continuations of every start position at once, temperature, generated text. Knows torch only."""
