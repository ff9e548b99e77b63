"""Compatibility layers: the names and the use of other systems, over this package."""
