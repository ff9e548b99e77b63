"""Read and write data sets of samples that are packed into tar files, with an index beside each."""
