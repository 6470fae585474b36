"""What videos take of the devices of a mesh, before any weight is read: bytes of a device, and about how long.

Weights are counted as they will lie; what is computed, by closed formulas. Nothing is compiled, so that a mesh that
cannot hold a model is refused at once; `kaleido plan --sample` compiles, and knows better.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh

from kaleido_jax.bundle import BundleConfig, abstract
from kaleido_jax.errors import UsageError
from kaleido_jax.methods import registry
from kaleido_jax.models.text import UMT5Encoder
from kaleido_jax.models.vae import WanVAE
from kaleido_jax.models.vision import VisionEncoder
from kaleido_jax.models.wan import WanTransformer
from kaleido_jax.parallel import MeshConfig, shardings
from kaleido_jax.parallel.devices import memory_of, rate_of
from kaleido_jax.parallel.flops import forward_operations
from kaleido_jax.parallel.mesh import AXES, factorisations
from kaleido_jax.parallel.partition import bytes_per_device
from kaleido_jax.pipeline.request import Settings

# Tensors as large as a layer's input that a device holds at once while a layer is computed, beside its hidden units and
# what attention reads; compiled programs take this many.
_AT_WORK = 6.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """Of one video on a mesh.

    bytes: of the fullest device, by kind. The text encoder is let go before sampling begins, so that it and what
    sampling computes are not there at once. memory: what a device has. operations: of all sampling steps.
    """

    mesh: MeshConfig
    bytes: dict[str, int]
    memory: int
    operations: float
    seconds: float

    @property
    def total(self) -> int:
        both = ("text encoder", "activations")
        return sum(n for kind, n in self.bytes.items() if kind not in both) + max(self.bytes[kind] for kind in both)

    @property
    def fits(self) -> bool:
        return self.total <= self.memory

    def __str__(self) -> str:
        gib = lambda size: f"{size / 2**30:.2f} GiB"
        kinds = ", ".join(f"{kind} {gib(size)}" for kind, size in self.bytes.items())
        return f"a device of the mesh {self.mesh} holds {gib(self.total)} of {gib(self.memory)} ({kinds})"


def needs(
    config: BundleConfig, settings: Settings, mesh: MeshConfig, *, memory: int, rate: float, references: Sequence[int]
) -> Needs:
    """What a video with these resolved settings takes of a mesh that is filled.

    Args:
      memory: bytes of a device. rate: operations a second of all devices together.
      references: frames of each reference; slots that are empty count as pictures.
    """
    transformers, place = 1 if config.experts is None else 2, AbstractMesh(mesh.shape, AXES)
    divided = {name: _shapes(config, name) for name in ("transformer", "text")}
    kept = {name: bytes_per_device(shapes, shardings(shapes, place)) for name, shapes in divided.items()}
    on_first = [_shapes(config, name) for name in ("vae", "vision") if getattr(config, name) is not None]
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for shapes in on_first for leaf in shapes.values())
    tokens, rows = _tokens(config, settings, references)
    wan = config.transformer
    own = -(-rows // (mesh.data * mesh.fsdp)) * tokens / mesh.sequence
    width = jnp.dtype(wan.dtype).itemsize * wan.dim * (_AT_WORK + (4 + wan.ffn_dim / wan.dim) / mesh.tensor)
    operations = settings.steps * rows * forward_operations(wan, tokens, config.defaults.text_tokens)
    return Needs(
        mesh=mesh,
        bytes={
            "transformer": kept["transformer"] * transformers,
            "text encoder": kept["text"],
            "VAE": whole,
            "activations": int(own * width),
        },
        memory=memory,
        operations=operations,
        seconds=operations / rate,
    )


def check(
    config: BundleConfig,
    settings: Settings,
    mesh: MeshConfig,
    devices: Sequence[Any],
    references: Sequence[int],
) -> Needs:
    """The needs of a video on these devices, of which the mesh takes the first. The rest is as in `needs`.

    Raises:
      UsageError: it cannot fit; says which mesh would, or how many devices, or that a smaller video is needed.
    """
    filled = mesh.filled(len(devices))
    own = devices[: filled.size]
    rates = {"memory": memory_of(own), "rate": rate_of(own)}
    asked = functools.partial(needs, config, settings, references=references, **rates)
    found = asked(filled)
    if found.fits:
        return found
    raise UsageError(f"This cannot fit: {found}; {_remedy(asked, config, found, len(devices))}.")


def _remedy(asked: Callable[[MeshConfig], Needs], config: BundleConfig, found: Needs, devices: int) -> str:
    """What would fit, in the order in which it costs least: another mesh, more devices, a smaller video."""
    for count in (devices, *(devices * 2**power for power in range(1, 7))):
        fitting = [mesh for mesh in _meshes(count, config.transformer.heads) if asked(mesh).fits]
        if fitting:
            # Weights that are divided are gathered at every step, so tokens and heads go first.
            best = min(fitting, key=lambda mesh: (mesh.fsdp, mesh.tensor, mesh.data != 2, mesh.sequence))
            return f"--mesh {best} would" + ("" if count == devices else f", on {count} devices")
    activations = found.bytes["activations"] / found.total
    return "a smaller --size or fewer --frames would" if activations > 0.5 else "no mesh of so many devices would"


def _meshes(devices: int, heads: int) -> list[MeshConfig]:
    """Those of so many devices that divide the heads and have few rows of guidance to divide."""
    shapes = (dict(zip(AXES, shape)) for shape in factorisations(devices, len(AXES)))
    return [MeshConfig(**shape) for shape in shapes if heads % shape["tensor"] == 0 and shape["data"] <= 2]


def _tokens(config: BundleConfig, settings: Settings, references: Sequence[int]) -> tuple[int, int]:
    """Visual tokens of a sequence, and how many sequences the guidance asks for at every step."""
    method = registry.create(config.method, config.scheme, config.options)
    (pt, ph, pw), vae = config.transformer.patch, config.vae
    assert settings.frames and settings.height and settings.width and settings.guidance is not None
    height, width = settings.height // vae.spatial_factor // ph, settings.width // vae.spatial_factor // pw
    frames = [vae.latent_frames(count) // pt for count in (settings.frames, *references)]
    if method.pictures == "subjects":
        frames += [1] * (config.defaults.references - len(references))
    else:
        frames = frames[:1]  # what is given of the video is in it
    return sum(frames) * height * width, len(method.guidance(settings.guidance).branches)


@functools.lru_cache(maxsize=8)
def _shapes(config: BundleConfig, name: str) -> dict[str, Any]:
    sizes = getattr(config, name)
    make = {"transformer": WanTransformer, "text": UMT5Encoder, "vae": WanVAE, "vision": VisionEncoder}[name]
    return abstract(lambda: make(sizes, nnx.Rngs(0)))[1]
