"""Named members in one object of a store: tar and zip files, read by span and never extracted."""
