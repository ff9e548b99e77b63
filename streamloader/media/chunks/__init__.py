"""Chunks of an archive: how a video is cut into them, and how their packets are decoded."""
