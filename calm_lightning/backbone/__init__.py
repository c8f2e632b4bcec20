"""The Llama-style transformer both language models stand on. Knows torch only."""
