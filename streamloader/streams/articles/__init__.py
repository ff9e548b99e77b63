"""Texts of web pages as streams: fetch pages politely, extract their main text, and keep both for resuming."""
