"""LANES: the plan, the ring of batches, the workers that fill it, and the supervisor that hands batches out."""
