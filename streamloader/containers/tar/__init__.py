"""Tar files, plain and compressed."""
