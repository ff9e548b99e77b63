"""Decode images and animations, and read their headers."""
