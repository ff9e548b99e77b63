"""Frames: the exact index of a video file, its decoder, and conversion into the batch. Only this room imports av."""
