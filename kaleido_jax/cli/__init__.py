"""The `kaleido` command. Importing it imports nothing heavy: every subcommand does that when it runs."""

from kaleido_jax.cli.main import main, program

__all__ = ["main", "program"]
