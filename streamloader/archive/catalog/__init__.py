"""The index of an archive: its videos, their chunks, and the frames that each chunk holds."""
