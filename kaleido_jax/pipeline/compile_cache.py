"""Compiled programs kept between runs, in the user's cache folder."""

import os
import sys
import warnings
from pathlib import Path


def default_folder() -> Path:
    """Where the platform keeps what may be deleted at any time: $XDG_CACHE_HOME, ~/.cache, ~/Library/Caches."""
    base = os.environ.get("XDG_CACHE_HOME")
    home = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return (Path(base) if base else home) / "kaleido_jax" / "compiled"


def use_compile_cache(folder: Path | None = None) -> Path | None:
    """Makes jax keep compiled programs in `folder`, or where JAX_COMPILATION_CACHE_DIR says; returns the folder.

    A folder that cannot be used costs a warning and nothing else: programs are then compiled anew in every run. Broken
    entries do the same, by jax's own setting.
    """
    import jax

    if folder is None:
        named = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        folder = Path(named) if named else default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(13, "no permission to read and write there")
    except OSError as error:
        warnings.warn(
            f"The compile cache {folder} cannot be used ({error.strerror}); programs are compiled anew.", stacklevel=2
        )
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Every program of a run counts: together the small ones cost more than a large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder
