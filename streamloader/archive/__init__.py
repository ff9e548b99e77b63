"""Archives: videos cut into chunks, found through a catalog, and read by frame number."""
