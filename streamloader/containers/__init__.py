"""Named members in one object of a store: tar files, zip files and packs, read by span and never extracted."""
