"""The networks of Pix2Pix (Isola et al. 2017), as its authors published them, and a plain U-Net for regression."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UnetGenerator(nn.Module):
    """Pix2Pix's U-Net: `blocks` halvings and doublings with skips; [B, in, H, W] in [-1, 1] -> [B, out, H, W] likewise.

    H and W must be multiples of 2 ** blocks. Batch norm always takes the statistics of the batch at hand, and dropout
    is on in training and in use alike: both as published (Sec. 3.3), so use it in training mode.

    Args:
        blocks: 8 is the published "U-Net 256".
        width: channels of the first block (ngf); doubled three times, then kept.
        dropouts: how many of the blocks of 8 x `width` channels around the innermost one have a dropout of 0.5.
    """

    def __init__(
        self, in_channels: int = 3, out_channels: int = 1, blocks: int = 8, width: int = 64, dropouts: int = 3
    ) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(blocks)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(widths):
            before = widths[level - 1] if level else in_channels
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if level else []
            layers.append(nn.Conv2d(before, channels, 4, 2, 1, bias=False))
            if 0 < level < blocks - 1:
                layers.append(_batch_norm(channels))
            self.down.append(nn.Sequential(*layers))
        for level in reversed(range(blocks)):
            inputs = widths[level] * (1 if level == blocks - 1 else 2)
            if level == 0:
                self.up.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(inputs, out_channels, 4, 2, 1), nn.Tanh()))
                break
            channels = widths[level - 1]
            layers = [nn.ReLU(), nn.ConvTranspose2d(inputs, channels, 4, 2, 1, bias=False), _batch_norm(channels)]
            if blocks - 1 - dropouts <= level < blocks - 1:
                layers.append(nn.Dropout(0.5))
            self.up.append(nn.Sequential(*layers))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            images = block(images)
            skips.append(images)  # [B, C, H / 2, W / 2] and so on
        hidden = skips.pop()
        for block in self.up[:-1]:
            hidden = torch.cat([skips.pop(), block(hidden)], dim=1)
        return self.up[-1](hidden)


class PatchDiscriminator(nn.Module):
    """Pix2Pix's 70 x 70 PatchGAN: [B, in, H, W] -> logits [B, 1, H / 8 - 2, W / 8 - 2], one for each patch."""

    def __init__(self, in_channels: int = 4, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for factor, stride in ((1, 2), (2, 2), (4, 1)):
            layers.append(nn.Conv2d(width * factor, width * factor * 2, 4, stride, 1, bias=False))
            layers += [_batch_norm(width * factor * 2), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width * 8, 1, 4, 1, 1))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class RegressionUNet(nn.Module):
    """A plain U-Net (Ronneberger et al. 2015) with group norm: [B, in, H, W] in [-1, 1] -> [B, out, H, W] likewise.

    H and W must be multiples of 2 ** (len(widths) - 1).

    Args:
        widths: channels at each resolution, the full one first; multiples of 8.
    """

    def __init__(
        self, widths: Sequence[int] = (8, 16, 32, 64, 128, 256, 256), in_channels: int = 3, out_channels: int = 1
    ) -> None:
        super().__init__()
        before = (in_channels, *widths)
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in zip(before, widths, strict=False))
        steps = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(_two_convolutions(below + here, here) for below, here in steps)
        self.out = nn.Conv2d(widths[0], out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.down):
            images = block(F.avg_pool2d(images, 2) if level else images)
            skips.append(images)
        hidden = skips.pop()
        for block in self.up:
            larger = F.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=False)
            hidden = block(torch.cat([skips.pop(), larger], dim=1))
        return torch.tanh(self.out(hidden))


def _two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(outputs // 8, outputs),  # finer groups would lose the brightness of the scene
            nn.SiLU(),
        ]
    return nn.Sequential(*layers)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02), gains of the norms from N(1, 0.02), biases at zero."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
