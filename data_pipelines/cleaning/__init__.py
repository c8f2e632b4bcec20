"""Which documents are kept, how they are normalised, and which split they belong to."""
