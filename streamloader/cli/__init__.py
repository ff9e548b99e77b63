"""The command ``streamloader``."""
