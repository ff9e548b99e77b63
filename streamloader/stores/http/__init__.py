"""HTTP and HTTPS stores."""
