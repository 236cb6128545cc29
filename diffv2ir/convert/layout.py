"""The architecture of an official Stable Diffusion 1.x model, read off the shapes of its weights.

What shapes do not show is the same in all of 1.x: 8 attention heads in the UNet, heads of 64 channels in CLIP, 32
groups in every group norm, a latent scale of 0.18215.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffv2ir.convert.checkpoint import ConvertError

UNET_HEADS = 8
CLIP_HEAD_WIDTH = 64
LATENT_SCALE = 0.18215

Shapes = Mapping[str, tuple[int, ...]]


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Config of diffusers' UNet2DConditionModel, by shapes under `model.diffusion_model.`.

    Raises:
        ConvertError: a weight that tells the architecture is missing, or it is one of Stable Diffusion 2 or later.
    """
    widths, layers, attention = [0], [0], [False]
    for number in range(1, _count(shapes, "input_blocks.")):
        block = f"input_blocks.{number}"
        if f"{block}.0.op.weight" in shapes:  # a downsampling ends a level
            widths, layers, attention = [*widths, 0], [*layers, 0], [*attention, False]
            continue
        widths[-1] = _shape(shapes, f"{block}.0.out_layers.3.weight", 4)[0]
        layers[-1] += 1
        attention[-1] |= f"{block}.1.proj_in.weight" in shapes
    projection, key_weight = "middle_block.1.proj_in.weight", "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    if len(shapes.get(projection, ())) == 2:
        raise ConvertError(
            f"{projection} is a linear layer: this is a UNet of Stable Diffusion 2 or later, expected one of 1.x, in "
            "which it is a convolution"
        )
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention]
    return {
        "sample_size": 64,
        "in_channels": _shape(shapes, "input_blocks.0.0.weight", 4)[1],
        "out_channels": _shape(shapes, "out.2.weight", 4)[0],
        "block_out_channels": widths,
        "layers_per_block": layers[0],
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "cross_attention_dim": _shape(shapes, key_weight, 2)[1],
        "attention_head_dim": UNET_HEADS,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Config of diffusers' AutoencoderKL, by shapes under `first_stage_model.`. Raises: ConvertError."""
    levels = range(_count(shapes, "encoder.down."))
    return {
        "sample_size": 512,
        "in_channels": _shape(shapes, "encoder.conv_in.weight", 4)[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight", 4)[0],
        "latent_channels": _shape(shapes, "post_quant_conv.weight", 4)[0],
        "block_out_channels": [_shape(shapes, f"encoder.down.{level}.block.0.conv2.weight", 4)[0] for level in levels],
        "layers_per_block": _count(shapes, "encoder.down.0.block."),
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
        "scaling_factor": LATENT_SCALE,
    }


def text_config(shapes: Shapes) -> dict[str, Any]:
    """Config of transformers' CLIPTextModel, by shapes under `cond_stage_model.transformer.`. Raises: ConvertError."""
    vocabulary, width = _shape(shapes, "text_model.embeddings.token_embedding.weight", 2)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": _shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": _count(shapes, "text_model.encoder.layers."),
        "num_attention_heads": max(1, width // CLIP_HEAD_WIDTH),
        "max_position_embeddings": _shape(shapes, "text_model.embeddings.position_embedding.weight", 2)[0],
        "bos_token_id": 0,
        "eos_token_id": 2,  # with 1 and 0 what Stable Diffusion 1.5's own config says; only pooling would read them
        "pad_token_id": 1,
    }


def _shape(shapes: Shapes, key: str, dimensions: int) -> tuple[int, ...]:
    if key not in shapes:
        raise ConvertError(f"{key} is missing: not a checkpoint in the layout of Stable Diffusion 1.x")
    shape = tuple(shapes[key])
    if len(shape) != dimensions:
        raise ConvertError(f"{key}: expected {dimensions} dimensions, got the shape {shape}")
    return shape


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered parts there are under a prefix."""
    numbers = {key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)}
    return max((int(number) for number in numbers if number.isdigit()), default=-1) + 1
