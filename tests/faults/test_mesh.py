"""A run goes on with other devices: 8, then 4, then 1, its tokens divided over another number of them each time."""

import signal

import numpy as np

from tests.faults.conftest import losses

MESHES = [
    (8, ["mesh.data=2", "mesh.fsdp=2", "mesh.sequence=2"]),
    (4, ["mesh.fsdp=1", "mesh.sequence=4"]),
    (1, []),
]


def test_a_run_goes_on_with_other_devices(launcher, smoke, undisturbed, tmp_path):
    """Sums are taken in another order: the losses differ by float32's rounding, what is trained on by nothing."""
    for devices, mesh in MESHES[:-1]:
        command = [*smoke(tmp_path, train__evaluate_every=1000), *mesh]
        assert launcher.run(command, devices=devices, kill=("a step begins", 6)) == -signal.SIGKILL, launcher.said
    assert launcher.run(smoke(tmp_path)) == 0, launcher.said
    assert "continuing from step" in launcher.said
    found, wanted = losses(tmp_path), losses(undisturbed)
    assert list(found) == list(wanted)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-6)
