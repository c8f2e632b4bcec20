"""Raw corpora as documents, whatever their format and wherever they lie."""
