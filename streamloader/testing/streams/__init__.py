"""The conformance suite of streams."""
