"""Documents into shards, in parallel processes, restartable at any moment."""
