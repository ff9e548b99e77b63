"""Sound: open, index, seek and decode files sample by sample, resample, and align with the frames of a video."""
