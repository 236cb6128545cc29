"""The FID, KID and LPIPS of the literature: Inception features of torch-fidelity, LPIPS (AlexNet) of torchmetrics.

Both libraries take the weights of their networks from torch hub's cache (`$TORCH_HOME/hub/checkpoints`) and download
them into it when they are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

WEIGHTS = {
    "weights-inception-2015-12-05-6726825d.pth": "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/",
    "alexnet-owt-7be5be79.pth": "https://download.pytorch.org/models/",
}


class WeightsMissing(RuntimeError):
    """A network of FID or LPIPS cannot be had; the message says where it is looked for and where it is published."""


class InceptionView:
    """Pictures as the networks of FID, KID and LPIPS see them. Gray is repeated for the three channels.

    Raises:
        ModuleNotFoundError: the libraries are not installed; the message says how to install them.
        WeightsMissing: their weights are neither in torch hub's cache nor can they be downloaded.
    """

    frechet, kernel, perceptual = "fid", "kid", "lpips"

    def __init__(self, device: str | None = None) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"FID, KID and LPIPS need two more packages ({error}): pip install torch-fidelity torchmetrics"
            ) from error
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            inception = FeatureExtractorInceptionV3("inception", ["2048"])
            lpips = LearnedPerceptualImagePatchSimilarity(net_type="alex", reduction="none").net
        except (OSError, RuntimeError) as error:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            places = ", ".join(url + name for name, url in WEIGHTS.items())
            raise WeightsMissing(
                f"FID, KID and LPIPS need {' and '.join(WEIGHTS)} in {folder}, and they cannot be used from there nor "
                f"be downloaded: {error}. They are published at {places}"
            ) from error
        self._inception, self._lpips = inception.to(self._device), lpips.to(self._device).eval()

    @torch.inference_mode()
    def see(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Inception's pooled features [B, 2048], and the pixels that `distances` takes: [B, 3, H, W] in [-1, 1]."""
        array = np.stack([np.asarray(image.convert("RGB")) for image in images])
        pixels = torch.from_numpy(array).permute(0, 3, 1, 2)  # [B, 3, H, W], 0..255
        (features,) = self._inception(pixels.to(self._device))
        return features.cpu(), pixels.float() / 127.5 - 1

    @torch.inference_mode()
    def distances(self, one: Tensor, other: Tensor) -> Tensor:
        """LPIPS of each picture to that at the same place: [B]."""
        return self._lpips(one.to(self._device), other.to(self._device)).flatten().cpu()
