"""What an ImageNet network sees in a photo, as a target beside the real one: few photos do not teach to see."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FeatureTarget(nn.Module):
    """The last of `EfficientNetLite0.maps`, each channel standardised over the training photos.

    Args:
        seen: features of many places, [C, N].
    """

    def __init__(self, seen: Tensor):
        super().__init__()
        self.register_buffer("mean", seen.mean(1)[:, None, None])
        self.register_buffer("deviation", seen.std(1).clamp(min=1e-3)[:, None, None])

    @property
    def channels(self) -> int:
        return len(self.mean)

    def distance(self, predicted: Tensor, features: Tensor) -> Tensor:
        """Mean squared difference of each sample, [N].

        Args:
            predicted: (N, C, h, w), standardised. features: the network's own, (N, C, h', w'), not finer.
        """
        wanted = (features.to(predicted.device) - self.mean) / self.deviation
        pooled = F.adaptive_avg_pool2d(predicted.float(), wanted.shape[-2:])
        return (pooled - wanted).square().mean(dim=(1, 2, 3))
