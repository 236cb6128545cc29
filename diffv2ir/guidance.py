"""Guidance over three conditions (Eq. 2 of the paper) as a weighted sum of branches.

Eq. 2,  ε(∅) + s_V (ε(V) − ε(∅)) + s_S (ε(V,S) − ε(V)) + s_T (ε(V,S,T) − ε(V,S)),  is the sum of the four predictions
with weights that add up to 1. Because they do, the same weights guide a v-prediction: with x_t = α x_0 + σ ε, the
velocity v = α ε − σ x_0 = (ε − σ x_t) / α is, at a fixed x_t and t, an affine function of ε, and an affine function
passes unchanged through a sum whose weights add up to 1.

The paper's released code takes the map before the photo ("svt"):  ε(∅) + s_S (ε(S) − ε(∅)) + s_V (ε(V,S) − ε(S))
+ s_T (ε(V,S,T) − ε(V,S)).  With s_V = s_S the two orders are the same.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffv2ir.files import cache_folder

logger = logging.getLogger(__name__)

# Above this many seconds one evaluation fills the device by itself: a batch gains nothing, and measuring takes long.
_SATURATED_SECONDS = 1.0


class BranchWeights(NamedTuple):
    """Weight of each prediction: without condition, with the first image of the order, with both, plus the text."""

    none: float
    first: float
    both: float
    text: float


@dataclass(frozen=True)
class Branch:
    """One prediction of the UNet and its weight in the sum, for B pictures."""

    weight: float
    image_latents: Tensor  # [B, 8, h, w]: visible and segmentation, zeros where null
    text_embeds: Tensor  # [B, L, D]


def branch_weights(
    visible_scale: float, segmentation_scale: float, text_scale: float, order: str = "vst"
) -> BranchWeights:
    """Eq. 2 of the paper, sorted by prediction; "svt" as in its released code. The four weights add up to 1."""
    first, second = visible_scale, segmentation_scale
    if order == "svt":
        first, second = second, first
    return BranchWeights(1 - first, first - second, second - text_scale, text_scale)


def make_branches(
    weights: BranchWeights,
    visible_latents: Tensor,
    segmentation_latents: Tensor | None,
    text_embeds: Tensor | None,
    null_embeds: Tensor,
    order: str = "vst",
) -> list[Branch]:
    """The branches that have to be evaluated: those whose weight is not zero.

    A condition that is switched off (None) makes two predictions equal; their weights are then added up.

    Args:
        visible_latents, segmentation_latents: [B, 4, h, w].
        text_embeds, null_embeds: [B, L, D] of the prompt and of the empty text.
        order: the one of the weights: "vst" has the visible image alone in its second branch, "svt" the map.
    """
    none, first, both, text = weights
    if text_embeds is None:
        both, text = both + text, 0.0
    null = torch.zeros_like(visible_latents)
    if segmentation_latents is None:
        segmentation_latents = null
        if order == "svt":
            none, first = none + first, 0.0
        else:
            first, both = first + both, 0.0
    alone = (null, segmentation_latents) if order == "svt" else (visible_latents, null)
    with_both = torch.cat([visible_latents, segmentation_latents], dim=1)  # [B, 8, h, w]
    branches = [
        Branch(none, torch.zeros_like(with_both), null_embeds),
        Branch(first, torch.cat(alone, dim=1), null_embeds),
        Branch(both, with_both, null_embeds),
        Branch(text, with_both, null_embeds if text_embeds is None else text_embeds),
    ]
    return [branch for branch in branches if branch.weight != 0]


def stack_pictures(branches: Sequence[Sequence[Branch]]) -> list[Branch]:
    """The branches of several pictures, of the same weights, as branches of one batch of pictures."""
    return [
        Branch(
            same[0].weight,
            torch.cat([branch.image_latents for branch in same]),
            torch.cat([branch.text_embeds for branch in same]),
        )
        for same in zip(*branches, strict=True)
    ]


def guided_prediction(
    unet: Callable, latents: Tensor, timestep: Tensor, branches: Sequence[Branch], together: bool = True
) -> Tensor:
    """Eq. 2 at one noise level.

    Args:
        unet: UNet2DConditionModel with 12 input channels (noisy target, visible, segmentation).
        latents: [B, 4, h, w], scaled for the UNet.
        branches: from `make_branches`.
        together: evaluate the branches as one batch, or one by one.

    Returns: the guided prediction (ε or v) as float32, [B, 4, h, w].
    """
    groups = [list(branches)] if together else [[branch] for branch in branches]
    guided = None
    for group in groups:
        prediction = _evaluate(unet, latents, timestep, group)  # [N * B, 4, h, w]
        for branch, part in zip(group, prediction.float().chunk(len(group)), strict=True):
            guided = branch.weight * part if guided is None else guided + branch.weight * part
    return guided


def _evaluate(unet: Callable, latents: Tensor, timestep: Tensor, branches: Sequence[Branch]) -> Tensor:
    conditions = torch.cat([branch.image_latents for branch in branches])  # [N * B, 8, h, w]
    sample = torch.cat([latents.to(conditions.dtype).repeat(len(branches), 1, 1, 1), conditions], dim=1)
    if sample.device.type == "cpu":
        sample = sample.contiguous(memory_format=torch.channels_last)
    text = torch.cat([branch.text_embeds for branch in branches])  # [N * B, L, D]
    return unet(sample, timestep, encoder_hidden_states=text).sample


class BranchPlan:
    """Whether a device runs the branches faster as one batch or one by one: measured once per shape, then remembered.

    The two ways differ in the last bits of a float, which can move a pixel by one gray level. So that a seed keeps
    giving the same picture, the answer is kept in a file per machine and never measured again. Delete the file, or set
    the environment variable DIFFV2IR_BRANCHES to "together" or "separate", to change it.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path else cache_folder() / "branches.json"
        self._known: dict[str, bool] = {}

    def together(self, unet: torch.nn.Module, latents: Tensor, timestep: Tensor, branches: Sequence[Branch]) -> bool:
        """The way to evaluate `branches` (arguments as in `guided_prediction`)."""
        wish = os.environ.get("DIFFV2IR_BRANCHES")
        if wish not in (None, "", "together", "separate"):
            raise ValueError(f"DIFFV2IR_BRANCHES must be 'together' or 'separate', got {wish!r}")
        if wish or len(branches) < 2:
            return wish != "separate"
        key = _key(unet, latents, branches)
        if key not in self._known:
            stored = self._read()
            if key not in stored:
                answer = _measure(unet, latents, timestep, branches)
                stored = {key: answer, **self._read()}  # another process may have answered meanwhile: it counts
                self._write(stored)
            self._known.update(stored)
        return self._known[key]

    def _read(self) -> dict[str, bool]:
        try:
            return {str(key): bool(value) for key, value in json.loads(self.path.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def _write(self, answers: dict[str, bool]) -> None:
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(answers, indent=1))
            partial.replace(self.path)
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s): the fastest way to evaluate is measured per process", self.path, error
            )


def _key(unet: torch.nn.Module, latents: Tensor, branches: Sequence[Branch]) -> str:
    device = latents.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}-{torch.get_num_threads()}"
    size = sum(parameter.numel() for parameter in unet.parameters())
    shape = "x".join(map(str, latents.shape[1:]))
    return f"{name}/torch-{torch.__version__}/{size}/{branches[0].image_latents.dtype}/{len(branches)}x{shape}"


def _measure(unet: torch.nn.Module, latents: Tensor, timestep: Tensor, branches: Sequence[Branch]) -> bool:
    def seconds(chosen: Sequence[Branch], together: bool) -> float:
        synchronize(latents.device)
        start = time.perf_counter()
        guided_prediction(unet, latents, timestep, chosen, together)
        synchronize(latents.device)
        return time.perf_counter() - start

    seconds(branches[:1], True)  # the first call of a shape pays for choosing kernels
    if seconds(branches[:1], True) > _SATURATED_SECONDS:
        return False
    seconds(branches, True)
    batch, single = seconds(branches, True), seconds(branches, False)
    logger.info("%d branches: %.3f s as one batch, %.3f s one by one", len(branches), batch, single)
    return batch <= single


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that a clock tells how long that took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
