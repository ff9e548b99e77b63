"""Files on IPFS, every block verified against its CID."""
