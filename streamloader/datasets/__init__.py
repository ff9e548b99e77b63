"""Data sets of independent samples: shards in any store, and objects on IPFS."""
