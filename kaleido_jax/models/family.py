"""One record a family of models: all that porting, training and the tests know of its weights.

What is said once for every family stands here; a family's `params.py` ends with its record, `FAMILY`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from kaleido_jax.models import mapping as tables
from kaleido_jax.models.mapping import Shape, Table


def _all(config: Any) -> bool:
    return True


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A family of models and the names of its weights.

    name: as commands and files call it. config: the class of its sizes; owns: which of that class are its own, where
      several families share it. make: the module of given sizes. sizes: released ones by name.
    layout: of its class in PyTorch, the one that is meant where none is named.
    mapping: (sizes, layout) -> where each parameter of ours lies in a checkpoint.
    config_from: (shapes of a checkpoint by name, layout, its config.json or None) -> sizes; InputError names what
      cannot be told.
    config_document: (sizes, layout) -> the config.json that stands beside the weights; {} where there is none.
    aliases: layout -> other names of tensors that a file may hold instead or too.
    ignored: layout -> patterns of tensors that a file may hold beside the weights, such as a table of positions.
    """

    name: str
    config: type
    make: Callable[[Any], nnx.Module]
    sizes: Mapping[str, Callable[[], Any]]
    layout: str
    mapping: Callable[[Any, Any], Table]
    config_from: Callable[[Mapping[str, Shape], Any, Mapping[str, Any] | None], Any]
    config_document: Callable[[Any, Any], dict[str, Any]]
    owns: Callable[[Any], bool] = _all
    aliases: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    ignored: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def has(self, config: Any) -> bool:
        """Whether these are sizes of this family; of all families they are of exactly one."""
        return type(config) is self.config and self.owns(config)

    def abstract_parameters(self, config: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every parameter by dotted name, without allocating any."""
        return tables.abstract_parameters(lambda: self.make(config))

    def torch_shapes(self, config: Any, layout: str | None = None) -> dict[str, Shape]:
        """Name and shape of every tensor of a checkpoint, aliases aside, without allocating any."""
        return tables.torch_shapes(self.mapping(config, layout or self.layout), self.abstract_parameters(config))

    def from_torch(self, tensors: Mapping[str, Any], config: Any, layout: str | None = None) -> dict[str, np.ndarray]:
        """Parameters by dotted name from a PyTorch state dict (arrays, or tensors that numpy can read).

        Tensors with another name for a weight are taken for it; what is no weight of the family is left out.

        Raises:
          InputError: naming every tensor that is missing, unexpected or of another shape.
        """
        layout = layout or self.layout
        named = {self.aliases_of(layout).get(name, name): tensor for name, tensor in tensors.items()}
        kept = {name: tensor for name, tensor in named.items() if not self.ignores(name, layout)}
        what = f"{self.name} weights of layout {layout}"
        return tables.from_torch(kept, self.mapping(config, layout), self.abstract_parameters(config), what)

    def to_torch(self, parameters: Mapping[str, Any], config: Any, layout: str | None = None) -> dict[str, np.ndarray]:
        """The inverse of `from_torch`; of several names of a tensor the first only."""
        return tables.to_torch(parameters, self.mapping(config, layout or self.layout))

    def aliases_of(self, layout: str) -> Mapping[str, str]:
        """Other names of tensors in this layout, each with the name that it stands for."""
        return self.aliases.get(layout, {})

    def ignores(self, name: str, layout: str) -> bool:
        """Whether a tensor of this name holds no weight of the family."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignored.get(layout, ()))
