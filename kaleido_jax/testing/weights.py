"""PyTorch modules with weights that leave nothing out of a comparison. Imports torch only when called."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

    M = TypeVar("M", bound=torch.nn.Module)


def randomise(module: M, seed: int = 0) -> M:
    """Fills every parameter with values that make it count, and puts the module in evaluation mode.

    Matrices and convolutions get a spread that keeps the size of activations; vectors of scales lie around 1, and all
    else (biases, tables, gates) is of order 0.1 to 1: no norm is the identity, no gate is shut and no bias is zero.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim == 1 and name.endswith(("weight", "gamma")):
                value = 1.0 + 0.3 * noise
            elif parameter.ndim == 1:
                value = 0.2 * noise
            elif parameter.numel() == max(parameter.shape):  # a vector kept as c x 1 x 1 x 1
                value = 1.0 + 0.3 * noise
            elif name.endswith("weight"):
                value = noise * (parameter.numel() / parameter.shape[0]) ** -0.5
            else:
                value = 0.5 * noise
            parameter.copy_(value.to(parameter.dtype))
    return module.eval()


def state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """The module's state dict as numpy arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}
