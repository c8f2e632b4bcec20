"""What lies on disk: manifests, and tar shards of tokens and of text."""
