"""Shapes of meshes, what does not divide, and where devices of several slices go."""

import dataclasses

import jax
import numpy as np
import pytest

from kaleido_jax.errors import UsageError
from kaleido_jax.parallel import AXES, MeshConfig
from kaleido_jax.parallel.mesh import device_grid


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 1, 1, 1)),
        (MeshConfig(data=8), (8, 1, 1, 1)),
        (MeshConfig(fsdp=4), (1, 4, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, sequence=2), (2, 2, 2, 1)),
        (MeshConfig(sequence=-1, ulysses=2, tensor=2), (1, 1, 4, 2)),
    ],
)
def test_shapes_of_eight_devices(config, shape):
    mesh = config.make()
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == shape


@pytest.mark.parametrize(
    ("config", "devices", "nearest"),
    [
        (MeshConfig(fsdp=3), 8, "fsdp=4,sequence=2|data=2,fsdp=4|fsdp=4,tensor=2"),
        (MeshConfig(data=3, fsdp=-1), 8, "data=4,fsdp=2"),
        (MeshConfig(data=4, sequence=4), 8, "data=2,sequence=4|data=4,sequence=2"),
        (MeshConfig(fsdp=7), 7 * 3 + 1, "data=2,fsdp=11|fsdp=11,sequence=2|fsdp=11,tensor=2"),
        (MeshConfig(fsdp=16), 8, "fsdp=8"),
    ],
)
def test_what_does_not_divide_names_the_nearest_shape_that_does(config, devices, nearest):
    with pytest.raises(UsageError, match=f"does not divide {devices} devices; the nearest that does is ({nearest})\\."):
        config.filled(devices)


def test_every_shape_of_small_numbers_is_filled_or_refused_with_one_that_is_filled():
    for devices in (1, 2, 6, 8):
        for sizes in np.ndindex(4, 4, 4, 4):
            shape = [size or -1 for size in sizes]
            if shape.count(-1) > 1:
                continue
            config = MeshConfig(**dict(zip(AXES, shape)))
            try:
                assert devices % config.filled(devices).size == 0
            except UsageError as error:
                proposed = MeshConfig.parse(str(error).split(" is ")[-1].rstrip("."))
                assert proposed.filled(devices).size == devices


def test_bad_sizes_are_errors():
    with pytest.raises(ValueError, match=r"mesh.fsdp is 0; expected a positive number, or -1"):
        MeshConfig(fsdp=0)
    with pytest.raises(ValueError, match="at most one axis of -1"):
        MeshConfig(data=-1, fsdp=-1)
    with pytest.raises(ValueError, match=r"mesh.ulysses is 3; expected a divisor of mesh.sequence, 4"):
        MeshConfig(sequence=4, ulysses=3)


def test_command_line():
    assert MeshConfig.parse("data=2, sequence=4,ulysses=2") == MeshConfig(data=2, sequence=4, ulysses=2)
    assert MeshConfig.parse(str(MeshConfig(fsdp=-1, tensor=2))) == MeshConfig(fsdp=-1, tensor=2)
    with pytest.raises(UsageError, match=r"no mesh axis 'sequense'; did you mean 'sequence'"):
        MeshConfig.parse("sequense=4")
    with pytest.raises(UsageError, match=r"gives data as 'two'"):
        MeshConfig.parse("data=two")


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax's layout of hybrid meshes asks of a device."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_slices_are_split_along_data_then_fsdp_and_never_inside_the_others():
    chips = [Chip(i, i % 2) for i in range(16)]
    slices = np.vectorize(lambda chip: chip.slice_index)
    grid = slices(device_grid(chips, (4, 2, 2, 1)))
    assert (
        (grid[:2] == grid[0, 0, 0, 0]).all() and (grid[2:] == grid[2, 0, 0, 0]).all() and grid[0, 0, 0] != grid[2, 0, 0]
    )
    grid = slices(device_grid(chips, (1, 8, 2, 1)))
    assert (grid[:, :4] == grid[0, 0, 0, 0]).all() and (grid[:, 4:] != grid[0, 0, 0, 0]).all()
    with pytest.raises(UsageError, match="one of them must be a multiple of the 2 slices"):
        device_grid(chips, (1, 1, 16, 1))


def test_a_mesh_can_be_of_some_of_the_devices():
    assert list(MeshConfig(fsdp=2).make().devices.flat) == jax.devices()[:2]
