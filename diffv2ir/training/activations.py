"""What a forward pass keeps for the way back, counted without numbers: a model on the meta device, shapes alone.

The meta device knows no autocast and no fused attention, so both are played here as a CUDA GPU has them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Of what a UNet calls: what CUDA's autocast computes in half precision, and what in float32.
_HALF = {F.linear, F.conv2d, torch.matmul, torch.bmm, torch.baddbmm}
_FLOAT32 = {F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax}


def activation_size(
    unet: UNet2DConditionModel, samples: int, side: int, tokens: int, half: torch.dtype | None = None
) -> int:
    """Bytes that a forward pass of a UNet on the meta device keeps until the backward pass has used them.

    These are the tensors that autograd saves, each once, without the weights but with the copies of them that autocast
    makes. With gradient checkpointing: what is kept between the parts that are computed again, and the largest part.
    Not counted is what lives for one operation only.

    Args:
        samples: of the forward pass. side: of their latents. tokens: of their prompts.
        half: what autocast computes in; None = no autocast.
    """
    own = {_place(parameter) for parameter in unet.parameters()}
    kept, parts, cuda = _Kept(own), [0], _AsOnCuda(half)

    def computed_again(module: nn.Module, *inputs: Any) -> Any:
        inside = _Kept(own)
        with inside.collecting():
            output = module(*inputs)
        for value in (*inputs, *cuda.copies.values()):
            if isinstance(value, Tensor):
                kept.add(value)
        parts.append(sum(size for place, size in inside.sizes.items() if place not in kept.sizes))
        return output

    if unet.is_gradient_checkpointing:
        unet.enable_gradient_checkpointing(computed_again)
    with torch.device("meta"):
        sample = torch.empty(samples, unet.config.in_channels, side, side)
        sample = sample.contiguous(memory_format=torch.channels_last)
        timesteps = torch.zeros(samples, dtype=torch.long)
        texts = torch.empty(samples, tokens, unet.config.cross_attention_dim)
        with kept.collecting(), cuda:
            unet(sample, timesteps, texts)
    for copy in cuda.copies.values():  # autocast holds all to the end, also what autograd does not save
        kept.add(copy)
    if unet.is_gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return sum(kept.sizes.values()) + max(parts)


class _Kept:
    """Bytes of the tensors that autograd saves, by where their numbers would lie; views of one count once."""

    def __init__(self, without: set[int]):
        self.sizes: dict[int, int] = {}
        self._without = without

    def add(self, tensor: Tensor) -> Tensor:
        if _place(tensor) not in self._without:
            self.sizes[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    def collecting(self) -> AbstractContextManager:
        # The graph holds what it is given back: no two tensors come to lie in one place.
        return torch.autograd.graph.saved_tensors_hooks(self.add, lambda tensor: tensor)


class _AsOnCuda(TorchFunctionMode):
    """Autocast to `half`, and attention by a fused kernel."""

    def __init__(self, half: torch.dtype | None):
        super().__init__()
        self.half = half
        self.copies: dict[nn.Parameter, Tensor] = {}

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*(self._cast(tensor, self.half) for tensor in args[:3]))
        wanted = self.half if function in _HALF else torch.float32 if function in _FLOAT32 else None
        args = tuple(self._cast(value, wanted) for value in args)
        return function(*args, **{name: self._cast(value, wanted) for name, value in kwargs.items()})

    def _cast(self, value: Any, wanted: torch.dtype | None) -> Any:
        if not (self.half and wanted and isinstance(value, Tensor) and value.is_floating_point()):
            return value
        if value.dtype == wanted:
            return value
        if not (isinstance(value, nn.Parameter) and value.requires_grad):
            return value.to(wanted)
        if value not in self.copies:
            self.copies[value] = value.to(wanted)
        return self.copies[value]


class _FusedAttention(torch.autograd.Function):
    """The shapes of flash and of memory-efficient attention: they keep a number for each row of the weights' matrix."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
