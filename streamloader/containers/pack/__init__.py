"""Packs: many small files in one, made to be mapped into memory."""
