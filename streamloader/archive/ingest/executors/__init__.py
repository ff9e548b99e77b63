"""Where ingest runs its work units: threads, processes, or a Ray cluster."""
