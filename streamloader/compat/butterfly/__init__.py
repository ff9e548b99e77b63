"""The compatibility layer for ButterflyTorch, over an archive."""
