"""Video files: opening, indexing, decoding and converting to pixels."""
