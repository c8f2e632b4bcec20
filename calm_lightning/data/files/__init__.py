"""Where bytes are: local files, addresses, commands, and the bounded cache between them and the reader."""
