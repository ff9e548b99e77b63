"""Objects behind HTTP and HTTPS."""
