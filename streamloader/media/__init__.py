"""Video frames: indexing, decoding, conversion, and chunks of archives. Only this package imports PyAV."""
