"""Data sets of many small files: one directory of subdirectories, with packs beside them."""
