"""Floating-point operations of the UNet, counted at true shape on the meta device, which computes nothing.

`python benchmarks/flops.py` prints what one evaluation takes, and the share in it of what a cache of the text's keys
and values would save.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # as a file, Python looks for modules beside it and not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from diffv2ir.training.shapes import SHAPES

TOKENS = 77


def forward_flops(unet: UNet2DConditionModel, side: int, tokens: int = TOKENS) -> int:
    """Operations (a multiplication and an addition are two) of one evaluation of one picture.

    Args:
        unet: on the meta device. side: of the latents. tokens: of the text.
    """
    sample = torch.empty(1, unet.config.in_channels, side, side, device="meta")
    text = torch.empty(1, tokens, unet.config.cross_attention_dim, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(sample, torch.zeros(1, device="meta"), text)
    return counter.get_total_flops()


def text_flops(unet: UNet2DConditionModel, tokens: int = TOKENS) -> int:
    """Those of them that depend on the text alone: its keys and values in every cross-attention."""
    layers = [module for name, module in unet.named_modules() if name.endswith((".attn2.to_k", ".attn2.to_v"))]
    return sum(2 * tokens * layer.in_features * layer.out_features for layer in layers)


def meta_unet(shape: str) -> UNet2DConditionModel:
    """The UNet of one of `SHAPES`, without numbers."""
    with torch.device("meta"):
        return UNet2DConditionModel(**SHAPES[shape]["unet"]).eval()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/flops.py", description=__doc__)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="sd15")
    parser.add_argument("--size", type=int, nargs="+", default=[256, 512], help="pixels, eight per latent")
    options = parser.parse_args()
    unet = meta_unet(options.shape)
    print("| picture | one evaluation, GFLOP | keys and values of the text | share |\n| --- | ---: | ---: | ---: |")
    for size in options.size:
        all_of_it, text = forward_flops(unet, size // 8), text_flops(unet)
        print(f"| {size} x {size} | {all_of_it / 1e9:.1f} | {text / 1e9:.2f} | {text / all_of_it:.2%} |")


if __name__ == "__main__":
    main()
