"""The demo: real clips through worker processes into a small recurrent model."""
