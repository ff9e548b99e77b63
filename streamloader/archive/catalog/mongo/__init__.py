"""Catalogs in MongoDB databases."""
