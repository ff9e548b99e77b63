"""Catalogs in MongoDB."""
