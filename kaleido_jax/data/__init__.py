"""Data: the procedural world, records and loaders."""
