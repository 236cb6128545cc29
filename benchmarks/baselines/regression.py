"""A plain U-Net that regresses infrared from the photo: mean absolute error, no adversary, nothing random in use.

`python -m benchmarks.baselines.regression --data DATASET --run RUN --minutes 30`

AdamW with a short warm-up and a cosine to zero, and the average of the weights is kept: as our own trainings.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baselines.command import main
from benchmarks.baselines.networks import RegressionUNet
from benchmarks.baselines.training import Learner

LEARNING_RATE, WARMUP_STEPS, EMA_DECAY = 1e-3, 50, 0.99


class Regression(Learner):
    """The network, its optimizer and its average. `widths`: see `RegressionUNet`."""

    name = "regression"
    batch_size = 8

    def __init__(
        self, device: torch.device | str = "cpu", seed: int = 0, widths: Sequence[int] = (8, 16, 32, 64, 128, 256, 256)
    ) -> None:
        torch.manual_seed(seed)
        self.options = {"widths": list(widths)}
        self.network = RegressionUNet(**self.options).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), LEARNING_RATE)
        self.average = EMAModel(self.network.parameters(), decay=EMA_DECAY)
        self.trained = {"network": self.network, "optimizer": self.optimizer, "average": self.average}

    def step(self, visible: Tensor, infrared: Tensor, progress: float) -> dict[str, float]:
        warm = min(1.0, (self.average.optimization_step + 1) / WARMUP_STEPS)
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm * (1 + math.cos(math.pi * progress)) / 2
        loss = F.l1_loss(self.network(visible), infrared)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.step(self.network.parameters())
        return {"loss": loss.item()}

    def weights(self) -> nn.Module:
        self.average.copy_to(self.network.parameters())
        return self.network


if __name__ == "__main__":
    sys.exit(main(Regression, __doc__))
