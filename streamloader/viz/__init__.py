"""Pictures of batches, for people."""
