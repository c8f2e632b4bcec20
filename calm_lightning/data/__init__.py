"""SHARDS -> TOKENS -> BLOCKS: knows bytes and ids, never models."""
