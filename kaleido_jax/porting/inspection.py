"""What a checkpoint is, without reading a tensor of it."""

import collections
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.porting import orbax
from kaleido_jax.porting.formats import nearest_size
from kaleido_jax.porting.parameters import Checkpoint


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a checkpoint is.

    size: the released size that it resembles most; differences: the fields in which it differs from it.
    dtypes: how many parameters each has. parameters: how many there are in all.
    problems: what is missing, unexpected or of a wrong shape.
    """

    family: str
    layout: str
    size: str
    differences: list[str]
    config: Any
    dtypes: dict[str, int]
    parameters: int
    tensors: int
    problems: list[str]


def inspect(source: str | os.PathLike[str]) -> Inspection:
    """Describe a checkpoint of any kind that `port` reads.

    Raises:
      InputError: its files are damaged, or it is of no known family.
    """
    path = Path(source)
    if orbax.is_orbax(path):
        row, config, shapes = orbax.describe(path)
        found, problems, layout = list(shapes.values()), [], "orbax"
    else:
        checkpoint = Checkpoint(path)
        checkpoint.close()
        row, config, problems = checkpoint.format, checkpoint.config, checkpoint.problems
        found, layout = list(checkpoint.weights.tensors.values()), row.layout
    dtypes: collections.Counter[str] = collections.Counter()
    for leaf in found:
        dtypes[np.dtype(leaf.dtype).name] += int(np.prod(leaf.shape, dtype=np.int64))
    size, differences = nearest_size(row.family, config)
    return Inspection(
        family=row.family.name,
        layout=layout,
        size=size,
        differences=differences,
        config=config,
        dtypes=dict(dtypes.most_common()),
        parameters=sum(dtypes.values()),
        tensors=len(found),
        problems=problems,
    )
