"""Read the frames of an archive: lookup, ranged reads, decoding and caches."""
