"""What a pipeline gives back: a video, with everything that it was made from."""

import dataclasses
from pathlib import Path

import numpy as np

from kaleido_jax.bundle import BundleConfig
from kaleido_jax.methods.scene import Scene
from kaleido_jax.pipeline.loras import LoraFile
from kaleido_jax.pipeline.outputs import Outputs
from kaleido_jax.pipeline.references import Reference
from kaleido_jax.pipeline.request import Settings
from kaleido_jax.typing import Float, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """A video with everything that it was made from.

    video: uint8 frames. config, folder: the model's (folder is None for one that was never on disk). reconstructions:
    the references as the model paints them again, for a method that does (contextanyone). scene: what was asked for, if
    it was more than a prompt (lct). latents: that the video was decoded from; None for scenes.
    """

    video: UInt8[np.ndarray, "f h w 3"]
    prompt: str
    references: tuple[Reference, ...]
    settings: Settings
    config: BundleConfig
    folder: Path | None
    loras: tuple[LoraFile, ...] = ()
    reconstructions: tuple[UInt8[np.ndarray, "_ h w 3"], ...] = ()
    scene: Scene | None = None
    latents: Float[np.ndarray, "_ _ _ z"] | None = None

    def save(self, path: str | Path, *, overwrite: bool = False) -> dict[str, Path]:
        """Writes the video (.mp4), a contact sheet (.sheet.png) and a record (.json) beside each other.

        Returns the three paths by name: "video", "sheet", "record".

        Raises:
          UsageError: the name does not end in .mp4, or something is there already and `overwrite` is False.
          StorageError: they cannot be written; nothing partial is left.
        """
        outputs = Outputs.of(path)
        outputs.check(self, overwrite=overwrite)
        outputs.write(self)
        return outputs.paths
