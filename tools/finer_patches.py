"""Give a model other patches, so that its training can go on with more tokens a frame.

    python tools/finer_patches.py runs/before/model runs/finer --patch 1,2,2

Everything but the patch embedding and the head is kept. Of those two, each cell of a new patch takes the weights of the
cell of an old one that lies nearest to the same place; the embedding is scaled, so that tokens keep their size. Nothing
of use comes out before it has been trained, but where the blocks know their work, a few hundred steps suffice.
"""

import argparse
import dataclasses
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kaleido_jax.bundle import load_bundle, merge, parameters, save_bundle
from kaleido_jax.layout import Grid
from kaleido_jax.models.wan import WanTransformer


def cells(old: Grid, new: Grid) -> np.ndarray:
    """[cells of a new patch]: which cell of an old one each takes; the cells of a patch go (frame, row, column)."""
    nearest = [np.rint(np.linspace(0, before - 1, after)).astype(int) for before, after in zip(old, new)]
    return np.ravel_multi_index(np.meshgrid(*nearest, indexing="ij"), old).ravel()


def with_patch(transformer: WanTransformer, patch: Grid) -> WanTransformer:
    """The transformer with patches (frames, rows, columns) of another size, in float32."""
    config = dataclasses.replace(transformer.config, patch=patch)
    taken = cells(transformer.config.patch, patch)
    values = {name: np.asarray(value, np.float32) for name, value in parameters(transformer).items()}
    kernel = values["patch_embedding.kernel"].reshape(-1, config.in_channels, config.dim)[taken]
    scale = math.sqrt(math.prod(transformer.config.patch) / math.prod(patch))
    values["patch_embedding.kernel"] = scale * kernel.reshape(-1, config.dim)
    head = values["head.projection.kernel"].reshape(config.dim, -1, config.out_channels)[:, taken]
    values["head.projection.kernel"] = head.reshape(config.dim, -1)
    values["head.projection.bias"] = values["head.projection.bias"].reshape(-1, config.out_channels)[taken].ravel()
    graph = nnx.split(nnx.eval_shape(lambda: WanTransformer(config, nnx.Rngs(0))))[0]
    return merge(graph, {name: jnp.asarray(value) for name, value in values.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--patch", required=True, help="frames,rows,columns of latents to a token")
    arguments = parser.parse_args()
    patch = tuple(int(size) for size in arguments.patch.split(","))
    if len(patch) != 3 or min(patch) < 1:
        parser.error(f"--patch is {arguments.patch}; expected three numbers from 1 on, as in 1,2,2.")
    bundle = load_bundle(arguments.folder)
    transformer = with_patch(bundle.transformer, patch)
    config = dataclasses.replace(bundle.config, transformer=transformer.config)
    save_bundle(arguments.out, dataclasses.replace(bundle, config=config, transformer=transformer))


if __name__ == "__main__":
    main()
