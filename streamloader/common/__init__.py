"""Helpers that know nothing of streams, stores or media."""
