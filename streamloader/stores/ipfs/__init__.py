"""Files on IPFS. Every block is verified against its CID."""
