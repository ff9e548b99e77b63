"""BATCHES: the loaders that users iterate over, and what they yield."""
