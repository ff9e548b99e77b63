"""Catalogs in SQLite files."""
