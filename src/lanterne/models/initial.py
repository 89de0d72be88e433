"""Starting weights as a function of a key. The global random generator is never touched."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lanterne.errors import ModelError
from lanterne.models.stack import LayerStack
from lanterne.rng import fold
from lanterne.tree import flatten

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def initial_weights(stack: LayerStack, key: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The flat weights from which training starts.

    A model that the user filled with numbers keeps them. One that was built on the `meta` device, as the zoo's are, is
    drawn as PyTorch draws it: weights and biases of linear and convolution layers uniform in
    `(-1/sqrt(fan_in), 1/sqrt(fan_in))`, normalisations at scale 1 and shift 0. Where only some layers are on `meta` (a
    head behind blocks of a user's own), only those are drawn.

    Args:
        stack: the model.
        key: a folded key; equal keys give equal weights.
        dtype: of the result. Draws are made in float64, so that dtypes differ by rounding only.

    Returns:
        `[size]`.

    Raises:
        ModelError: for a layer on `meta` for which no rule is known.
    """
    if not any(p.is_meta for p in stack.net.parameters()):
        return stack.flat().to(dtype)
    drawn: dict[str, Tensor] = {}
    for path, module in stack.net.named_modules():
        own = dict(module.named_parameters(recurse=False))
        for name, parameter in own.items():
            full_name = f"{path}.{name}" if path else name
            if not parameter.is_meta:
                drawn[full_name] = parameter.detach().double()
            elif isinstance(module, _WEIGHTED):
                fan_in = module.weight[0].numel()
                generator = torch.Generator().manual_seed(fold(key, "initial", full_name))
                unit = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                drawn[full_name] = (2 * unit - 1) / math.sqrt(fan_in)
            elif isinstance(module, _NORMS):
                fill = 1.0 if name == "weight" else 0.0
                drawn[full_name] = torch.full(parameter.shape, fill, dtype=torch.float64)
            else:
                raise ModelError(
                    f"No starting weights are known for {full_name!r} of {type(module).__name__}. "
                    "Build the model on the CPU, so that it brings its own."
                )
    return flatten([drawn[n] for names in stack.parameters for n in names]).to(dtype)
