"""Zip files as containers."""
