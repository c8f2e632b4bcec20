"""PILE -> SHARDS: raw Pile-format text becomes tokenised, reproducible WebDataset shards with a manifest."""
