"""Judging videos: what the procedural world knows of them, measured from pixels alone."""
