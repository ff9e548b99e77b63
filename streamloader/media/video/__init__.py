"""Video files: opening, indexing, decoding, and conversion to pixels."""
