"""Samples by number: archives of videos, read exactly and at random."""
