"""The mesh of devices: how many divide the batch, the weights, the tokens and the heads."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from kaleido_jax.errors import UsageError, unknown_name

# Outermost first: neighbours along the last axes are nearest to each other in the network.
AXES = ("data", "fsdp", "sequence", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many devices work along each axis; one of them may be -1, which takes all that the others leave.

    data: divides the batch and nothing else; it is the one to lie across slices, whose network is slow.
    fsdp: divides the batch, and weights and moments, which are gathered where they are used (Rajbhandari et al. 2020).
    sequence: divides the tokens of a sample, by Ulysses and ring attention. tensor: divides heads and hidden units.
    ulysses: how many neighbours on the sequence axis exchange tokens for heads, the groups forming a ring; None: as
    many as heads and axis allow.
    """

    data: int = 1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    ulysses: int | None = None

    def __post_init__(self) -> None:
        for name, size in zip(AXES, self.shape):
            if not isinstance(size, int) or (size < 1 and size != -1):
                raise ValueError(f"mesh.{name} is {size!r}; expected a positive number, or -1 for all that are left")
        if self.shape.count(-1) > 1:
            raise ValueError(f"mesh is {self}; expected at most one axis of -1")
        if self.ulysses is not None and (self.ulysses < 1 or (self.sequence > 0 and self.sequence % self.ulysses)):
            raise ValueError(f"mesh.ulysses is {self.ulysses}; expected a divisor of mesh.sequence, {self.sequence}")

    def __str__(self) -> str:
        sizes = [f"{name}={size}" for name, size in zip(AXES, self.shape) if size != 1]
        sizes += [f"ulysses={self.ulysses}"] * (self.ulysses is not None)
        return ",".join(sizes) or "data=1"

    @classmethod
    def parse(cls, text: str) -> "MeshConfig":
        """The mesh of a command line such as "data=2,sequence=4". UsageError for what cannot be read."""
        sizes: dict[str, int] = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            if name not in (*AXES, "ulysses"):
                raise UsageError(unknown_name("mesh axis", name, (*AXES, "ulysses")))
            try:
                sizes[name] = int(value)
            except ValueError:
                example = "write for example data=2,sequence=4"
                raise UsageError(f"The mesh {text!r} gives {name} as {value!r}; {example}.") from None
        try:
            return cls(**sizes)
        except ValueError as error:
            raise UsageError(f"{error}.") from None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.data, self.fsdp, self.sequence, self.tensor

    @property
    def size(self) -> int:
        """How many devices it takes; -1 counts as one."""
        return math.prod(max(size, 1) for size in self.shape)

    def filled(self, devices: int) -> "MeshConfig":
        """This mesh with -1 replaced, for a number of devices.

        Raises:
          UsageError: the sizes do not divide the devices; names the nearest shape that does.
        """
        if devices % self.size or (-1 not in self.shape and devices < self.size):
            raise UsageError(
                f"The mesh {self} does not divide {devices} device{'s' * (devices != 1)}; "
                f"the nearest that does is {_nearest(self, devices)}."
            )
        shape = [devices // self.size if size == -1 else size for size in self.shape]
        return dataclasses.replace(self, **dict(zip(AXES, shape)))

    def make(self, devices: Sequence[Any] | None = None) -> Mesh:
        """A mesh with the axes AXES of these devices (None: all there are), or of the first ones if it takes fewer.

        Devices of several slices (TPU pods joined by a data-centre network) are split among the slices along the data
        axis, or along fsdp where data does not divide.

        Raises:
          UsageError: the sizes do not divide the devices, or no axis divides the slices.
        """
        devices = list(jax.devices() if devices is None else devices)
        filled = self.filled(len(devices))
        return Mesh(device_grid(devices[: filled.size], filled.shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def device_grid(devices: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """Devices as an array of this shape, neighbours in the network along its last axes."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        across = next((axis for axis in (0, 1) if shape[axis] % slices == 0), None)
        if across is None:
            raise UsageError(
                f"The mesh has data={shape[0]} and fsdp={shape[1]}; one of them must be a multiple of the {slices} "
                "slices that the devices form, because the other axes need the network inside a slice."
            )
        outer = [slices if axis == across else 1 for axis in range(len(shape))]
        inner = [size // factor for size, factor in zip(shape, outer)]
        return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.array(devices).reshape(shape)


def _nearest(config: MeshConfig, devices: int) -> MeshConfig:
    """The shape of all devices whose sizes differ least from those wanted, by ratio; -1 may become anything."""

    def distance(shape: tuple[int, ...]) -> float:
        return sum(abs(math.log(size / wanted)) for size, wanted in zip(shape, config.shape) if wanted != -1)

    best = min(factorisations(devices, len(AXES)), key=distance)
    kept = config.ulysses if config.ulysses and best[AXES.index("sequence")] % config.ulysses == 0 else None
    return MeshConfig(**dict(zip(AXES, best)), ulysses=kept)


def factorisations(number: int, count: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as an ordered product of `count` factors."""
    if count == 1:
        yield (number,)
        return
    for first in (divisor for divisor in range(1, number + 1) if number % divisor == 0):
        yield from ((first, *rest) for rest in factorisations(number // first, count - 1))
