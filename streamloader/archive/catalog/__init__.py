"""The index of an archive: which videos there are, and which chunk of them holds which frames."""
