"""Read and write data sets whose files are on IPFS."""
