"""Refuse files over 12 MB (the shipped miniature may have 10): python no_large_files.py FILE..."""

import pathlib
import sys

LIMIT = 12 * 2**20
large = [path for path in map(pathlib.Path, sys.argv[1:]) if path.is_file() and path.stat().st_size > LIMIT]
for path in large:
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")
sys.exit(bool(large))
