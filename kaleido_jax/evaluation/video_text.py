"""VBench's overall consistency: the cosine of a video and its prompt by ViCLIP, with weights from a path."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.errors import InputError, printable
from kaleido_jax.evaluation.encoders import digest, existing
from kaleido_jax.evaluation.metrics.similarity import cosines
from kaleido_jax.models import mapping
from kaleido_jax.models.text.clip.tokenizer import CLIPTokenizer
from kaleido_jax.models.viclip import ViCLIP, params
from kaleido_jax.models.vision import Preprocessing
from kaleido_jax.porting.weights import open_weights


def middle_frames(frames: int, count: int) -> list[int]:
    """Which frames of a video VBench looks at: the middle of each of `count` equal parts; a shorter video's last frame
    is repeated."""
    parts = min(count, frames)
    edges = [int(edge) for edge in np.linspace(0, frames, parts + 1)]
    chosen = [(first + last - 1) // 2 for first, last in zip(edges, edges[1:])]
    return chosen + chosen[-1:] * (count - parts)


class VideoText:
    """ViCLIP with its weights; `name` says which. Reads at most `longest` tokens of a prompt."""

    def __init__(self, path: str | Path):
        """From ViClip-InternVid-10M-FLT.pth, or a folder that holds it, with CLIP's tokenizer beside it
        (tokenizer.json, or vocab.json and merges.txt, as openai/clip-vit-large-patch14 has them).

        Raises:
          InputError, UsageError: there are no such weights, no tokenizer beside them, or they are damaged.
        """
        source = Path(existing(path))
        weights = open_weights(source)
        try:
            names = [name for name in weights.tensors if not params.ignored(name)]
            try:
                config = params.config_from({name: tuple(weights.tensors[name].shape) for name in names})
            except ValueError as error:
                raise InputError(f"{printable(str(path))}: {error}") from None
            read = {name: weights.read(name) for name in names}
        finally:
            weights.close()
        self._tokenizer = CLIPTokenizer.load(source if source.is_dir() else source.parent)
        make = lambda: ViCLIP(config, nnx.Rngs(0))
        found = mapping.from_torch(
            read, params.mapping(config), mapping.abstract_parameters(make), "the weights of ViCLIP"
        )
        self._parameters = jax.device_put({name: np.asarray(x, np.float32) for name, x in found.items()})
        graph, _ = abstract(make)
        self._video = jax.jit(lambda parameters, x: merge(graph, parameters).video.embed(x))
        self._text = jax.jit(lambda parameters, ids: merge(graph, parameters).embed_text(ids))
        self._frames, self.longest = config.frames, config.text.positions
        size = config.vision.image_size
        self._prepare = Preprocessing.vbench_clip(size)
        self.name = f"ViCLIP {config.frames} frames of {size} px; {source.name} sha256 {digest(read)}"

    def __call__(self, video: UInt8[np.ndarray, "f h w 3"], prompt: str) -> float:
        """The cosine of a video and a prompt."""
        pixels = self._prepare(video[number] for number in middle_frames(len(video), self._frames))
        ids = jnp.asarray(self._tokenizer.encode([prompt], self.longest))
        rows = self._video(self._parameters, jnp.asarray(pixels)[None]), self._text(self._parameters, ids)
        return float(cosines(*(np.asarray(row) for row in rows))[0, 0])

    def cut(self, prompt: str) -> int:
        """How many tokens of the prompt are not read."""
        return self._tokenizer.cut(prompt, self.longest)
