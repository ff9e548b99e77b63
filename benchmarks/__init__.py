"""Benchmarks of streamloader beside its peers: one file a question, every contender in the same run."""
