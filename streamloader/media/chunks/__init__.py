"""Chunks of an archive: cutting videos into them, their index, and decoding their packets."""
