"""One of several processes: python worker.py ADDRESS PROCESSES RANK FOLDER. Its test is test_two_processes.py."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kaleido_jax.methods import kaleido
from kaleido_jax.models.wan import WanConfig, WanTransformer

CONFIG = WanConfig(dim=48, ffn_dim=96, heads=4, layers=2, in_channels=4, out_channels=4, text_dim=16, freq_dim=32)
LAYOUT = kaleido.layout((2, 2, 3), [(1, 2, 3)] * 2, text_tokens=5)
BATCH, DEVICES = 2, 2  # samples, devices of a process


def arguments():
    """The same on every process: parameters, tokens, table and text."""
    parameters = nnx.state(WanTransformer(CONFIG, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    # The head starts at zero; with noise on every leaf all of them show in the output.
    parameters = jax.tree.map(lambda leaf: leaf + np.float32(0.05) * normal(*leaf.shape), parameters)
    table = kaleido.table(
        LAYOUT,
        times=np.array([0.25, 0.75], np.float32),
        reference_counts=np.array([1, 2]),
        text_lengths=np.array([5, 3]),
    )
    return parameters, normal(BATCH, LAYOUT.tokens("visual"), 16), table, normal(BATCH, 5, CONFIG.text_dim)


def forward(parameters, tokens, table, text):
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: WanTransformer(CONFIG, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, parameters)(tokens, table, text, layout=LAYOUT)


def sharding_of(leaf, mesh: Mesh, *, parameter: bool) -> NamedSharding:
    if parameter:  # columns over the devices of a process, and so are the sums over them
        even = leaf.ndim > 1 and leaf.shape[-1] % DEVICES == 0
        return NamedSharding(mesh, P(*[None] * (leaf.ndim - 1), "model") if even else P())
    return NamedSharding(mesh, P("data") if leaf.ndim and leaf.shape[0] == BATCH else P())


def main(address: str, processes: str, rank: str, folder: str) -> None:
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.distributed.initialize(address, int(processes), int(rank))
    mesh = Mesh(np.array(jax.devices()).reshape(int(processes), DEVICES), ("data", "model"))

    everywhere = NamedSharding(mesh, P(("data", "model")))
    numbers = jax.make_array_from_callback((4,), everywhere, lambda index: np.arange(4, dtype=np.float32)[index])
    total = jax.jit(lambda x: jnp.sum(jnp.square(x)), out_shardings=NamedSharding(mesh, P()))(numbers)

    def place(leaf, parameter):
        value = np.asarray(leaf)
        return jax.make_array_from_callback(
            value.shape, sharding_of(value, mesh, parameter=parameter), lambda index: value[index]
        )

    parameters, *inputs = arguments()
    parameters = jax.tree.map(lambda leaf: place(leaf, True), parameters)
    inputs = jax.tree.map(lambda leaf: place(leaf, False), inputs)
    velocity = jax.jit(forward, out_shardings=NamedSharding(mesh, P("data")))(parameters, *inputs)
    velocity = multihost_utils.process_allgather(velocity, tiled=True)

    if jax.process_index() == 0:
        np.save(pathlib.Path(folder, "velocity.npy"), velocity)
    report = {"sum": float(total), "devices": [jax.local_device_count(), jax.device_count()]}
    pathlib.Path(folder, f"{rank}.json").write_text(json.dumps(report))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
