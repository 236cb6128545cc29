"""Writing a component in half precision, weight by weight: never is a whole model in memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from diffv2ir.convert.checkpoint import ConvertError
from diffv2ir.convert.official import Component, is_pointwise
from diffv2ir.unet import widen_conv_in

SHARD = 500_000_000  # bytes
READ_AT_ONCE = 64_000_000  # bytes

Load = Callable[[], Mapping[str, Tensor]]


def write_component(component: Component, load: Load, folder: Path, in_channels: int | None = None) -> None:
    """Write config and float16 weights of a component in the layout of diffusers or transformers.

    Args:
        load: opens the checkpoint, memory-mapped. It is called anew now and then, which lets go of what was read.
        in_channels: of a UNet that gets more input channels, whose weights are zero (Sec. 3.3 of the paper).

    Raises:
        ConvertError: a weight is not finite in float16.
    """
    model = component.model
    if in_channels is not None:
        widen_conv_in(model, in_channels)
    diffusers = hasattr(model, "save_config")
    if diffusers:
        model.save_config(folder)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = torch.float16
        model.config.save_pretrained(folder)
    name = "diffusion_pytorch_model" if diffusers else "model"
    shapes = {key: tensor.half() for key, tensor in model.state_dict().items()}  # on the meta device
    plan = split_torch_state_dict_into_shards(
        shapes, filename_pattern=f"{name}{{suffix}}.safetensors", max_shard_size=SHARD
    )
    weights = _Weights(load)
    for file, names in plan.filename_to_tensors.items():
        _write_shard(folder / file, {name: tuple(shapes[name].shape) for name in names}, component.keys, weights)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2))


class _Weights:
    """Weights of a checkpoint by key, of which few are in memory: what was read stays there while the file is open."""

    def __init__(self, load: Load):
        self._load = load
        self._open, self._read = load(), 0

    def __getitem__(self, key: str) -> Tensor:
        if self._read > READ_AT_ONCE:
            self._open = {}  # closed before it is opened again
            self._open, self._read = self._load(), 0
        self._read += self._open[key].nbytes
        return self._open[key]


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], keys: dict[str, str], weights: _Weights) -> None:
    """A safetensors file of weights by their name in the model, written one by one: safetensors itself needs all."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + torch.float16.itemsize * math.prod(shape)
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": (begin, end)}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # weights begin at a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, shape in shapes.items():
            _write_weight(file, weights, keys[name], shape)


def _write_weight(file: BinaryIO, weights: _Weights, key: str, shape: tuple[int, ...]) -> None:
    # A function of its own: when it returns, nothing of the checkpoint is held any more.
    file.write(_half(weights[key], key, shape).numpy())


def _half(weight: Tensor, key: str, shape: tuple[int, ...]) -> Tensor:
    """A weight in float16 and in the model's shape: a 1x1 convolution made linear, or widened by zero channels."""
    half = weight.half()
    if not torch.isfinite(half).all():
        raise ConvertError(f"{key} is not finite in float16 (largest value: {weight.abs().max():.3g})")
    if is_pointwise(tuple(half.shape), shape):
        return half.reshape(shape)
    if half.shape != shape:
        wide = half.new_zeros(shape)
        wide[:, : half.shape[1]] = half
        return wide
    return half.contiguous()
