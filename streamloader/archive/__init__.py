"""FRAMES BY NUMBER: videos cut into chunks, found through a catalog, and read by frame number."""
