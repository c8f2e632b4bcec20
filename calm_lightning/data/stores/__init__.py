"""Shards as arrays, whichever kind of corpus they come from."""
