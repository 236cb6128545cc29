"""Writing a component in half precision, shard by shard: never is a whole model in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from diffv2ir.convert.checkpoint import ConvertError
from diffv2ir.convert.official import Component, is_pointwise
from diffv2ir.unet import widen_conv_in

SHARD = 500_000_000  # bytes


def write_component(
    component: Component, load: Callable[[], Mapping[str, Tensor]], folder: Path, in_channels: int | None = None
) -> None:
    """Write config and float16 weights of a component in the layout of diffusers or transformers.

    Args:
        load: opens the checkpoint, memory-mapped. It is called anew for each shard, which lets go of what was read.
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
        model.config.save_pretrained(folder)
    name = "diffusion_pytorch_model" if diffusers else "model"
    shapes = {key: tensor.half() for key, tensor in model.state_dict().items()}  # on the meta device
    plan = split_torch_state_dict_into_shards(
        shapes, filename_pattern=f"{name}{{suffix}}.safetensors", max_shard_size=SHARD
    )
    for file, names in plan.filename_to_tensors.items():
        _write_shard(folder / file, {name: (component.keys[name], tuple(shapes[name].shape)) for name in names}, load())
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_shard(path: Path, wanted: dict[str, tuple[str, tuple[int, ...]]], weights: Mapping[str, Tensor]) -> None:
    """Write weights by their name in the model; `wanted` has their key in the checkpoint and the shape to be."""
    halves = {name: _half(weights[key], key, shape) for name, (key, shape) in wanted.items()}
    save_file(halves, path, metadata={"format": "pt"})


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
