"""Which noise schedules the samplers can follow. Without torch: a bundle is checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREDICTION_TYPES = ("epsilon", "v_prediction")


def check_schedule(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a scheduler config that no sampler here can follow."""
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise ValueError(
            f"the scheduler's prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction!r}"
        )
    if prediction == "epsilon" and config.get("rescale_betas_zero_snr"):
        raise ValueError(
            "the scheduler has rescale_betas_zero_snr with prediction_type 'epsilon': pure noise says nothing about "
            "the picture there; train with 'v_prediction'"
        )
