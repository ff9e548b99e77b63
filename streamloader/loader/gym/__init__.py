"""Batches of Gymnasium environments: spaces as fields, episodes as streams, three autoreset modes."""
