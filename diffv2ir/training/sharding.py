"""A model whose weights are shared among the processes of a training (FSDP2, `torch.distributed.fsdp.fully_shard`).

Each process holds a part of every tensor: of the weights, their gradients, the optimizer's moments and the average.
A block's weights are gathered when it is computed, and let go afterwards; the half-precision copies that mixed
precision makes of them are kept, whole, until the backward pass has used them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, device: torch.device, processes: int) -> None:
    """Share the weights of `model`, in place, among all processes, which each hold the same now.

    The blocks that diffusers and transformers name as units (`_no_split_modules`) are gathered one by one. What is in
    main memory goes to `device` block by block: it never has to hold the whole.

    Raises:
        ValueError: a weight is used in two places; it would become two.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if tied := sorted(set(names) - {name for name, _ in model.named_parameters()}):
        raise ValueError(f"shard: {tied[0]} is also used elsewhere in the model; train it with shard: false")
    mesh = init_device_mesh(device.type, (processes,))
    model.to(memory_format=torch.contiguous_format)  # a part of channels-last weights would not be one piece
    units = set(getattr(model, "_no_split_modules", None) or ())
    for module in reversed(list(model.modules())):  # what lies within a unit comes before it
        if module is model or type(module).__name__ in units:
            fully_shard(module, mesh=mesh)


def gathered(tensor: Tensor, keep: bool = True) -> Tensor | None:
    """A shared tensor as a whole, in main memory; all processes have to ask for it. Others are returned as they are.

    Args:
        keep: False = take part in gathering a shared tensor for the other processes, and get None.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    whole = tensor.detach().full_tensor()
    return whole.cpu() if keep else None


def part_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """The whole that `gathered` gave, or that one process alone had, shared as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return whole
    # Every process has read the same file: none has to send it to the others.
    shared = distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    return shared.clone()  # a part of its own: the whole can go
