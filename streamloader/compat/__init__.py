"""Compatibility layers: the interfaces of other systems over this package."""
