"""The conformance suite of containers."""
