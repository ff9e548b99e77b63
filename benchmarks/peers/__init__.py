"""The contenders: how each of them is written, at its best and as people write it."""
