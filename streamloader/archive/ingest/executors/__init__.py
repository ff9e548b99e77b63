"""Executors: they run the work units of an ingest in threads, processes or on a Ray cluster."""
