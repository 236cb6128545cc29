"""Table 4 of the paper: steps and each guidance scale of one bundle, every other setting as the bundle has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffv2ir.axes import AXES, label, parse_axis
from diffv2ir.data import Example
from diffv2ir.evaluate import OVERALL
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.scores import View
from diffv2ir.settings import GenerationSettings
from diffv2ir.training.ablation import report
from diffv2ir.training.ablation.cells import Cells, device_name, model_hash
from diffv2ir.training.ablation.scoring import Photos, generating, score_cell, warm_up
from diffv2ir.training.learnt import examples_hash

SCALES = ("visible_scale", "segmentation_scale", "text_scale")
VALUES = {"steps": "1,2,5,10,20,50,100", **dict.fromkeys(SCALES, "0,0.5,1,1.5,2,3,5,7.5")}
"""What is swept if nothing else is asked for."""

NAME = "table4"


def sweep(
    pipe: DiffV2IRPipeline,
    examples: Sequence[Example],
    settings: GenerationSettings,
    values: Mapping[str, str],
    output: Path,
    title: str,
    views: Sequence[View] | None = None,
) -> Path:
    """Score every value, write table and plots; returns the table. Finished cells are found in `output/cells`.

    Args:
        settings: what stays; its own value of an axis is always among the values.
        values: axis -> text of values, see `parse_axis`.
        title: says in the table what was scored. views: see `scores.score`.

    Raises:
        GridError: a value that is not understood or out of range.
    """
    plans = {axis: _plan(axis, text, settings) for axis, text in values.items()}
    cells, photos = Cells(output / "cells", views), Photos(pipe, examples, settings, views)
    common = {
        "table": NAME,
        "bundle": model_hash(pipe.folder),
        "pairs": examples_hash(examples),
        "device": device_name(pipe.compute_device),
    }

    def measure(own: GenerationSettings) -> dict[str, Any]:
        if not cells.computed:
            warm_up(photos, generating(pipe, photos.settings.replace(steps=1)))
        return score_cell(photos, own, generating(pipe, own))

    rows: list[report.Row] = []
    for axis, plan in plans.items():
        for value, own in plan:
            result = cells.get({**common, "settings": own.to_dict()}, lambda own=own: measure(own))
            rows.append(_row(axis, value, own == settings, result))
    _write(output, rows, settings, title, common["device"], pipe.compute_device.type == "cpu")
    return output / f"{NAME}.md"


def _plan(axis: str, text: str, settings: GenerationSettings) -> list[tuple[Any, GenerationSettings]]:
    values = {*parse_axis(axis, text).values, getattr(settings, axis)}
    return [(value, settings.replace(**{axis: value})) for value in sorted(values)]


def _row(axis: str, value: Any, default: bool, result: Mapping[str, Any]) -> report.Row:
    return {
        "axis": AXES[axis],
        "value": value,
        "default": default,
        **{name: result[name] for name in report.COSTS},
        **report.score_fields(result["methods"]["model"][OVERALL]),
    }


def _write(
    output: Path, rows: list[report.Row], settings: GenerationSettings, title: str, device: str, on_cpu: bool
) -> None:
    fixed = ", ".join(label(axis, getattr(settings, axis)) for axis in ("steps", *SCALES, "sampler", "edge_radius"))
    text = [
        f"{title}. One setting varies, the others stay as in the bold rows: {fixed}, "
        f"resolution {settings.resolution}. 95 % bootstrap intervals over the photos.",
        report.COST_NOTE.format(device=device),
    ]
    by_axis = {axis: [row for row in rows if row["axis"] == AXES[axis]] for axis in ("steps", *SCALES)}
    scales = {AXES[axis]: by_axis[axis] for axis in SCALES if by_axis[axis]}
    plots = []
    if scales:
        report.plot_lines(output / "scales.png", scales, "value", "scale")
        plots.append("scales.png")
    if by_axis["steps"]:
        report.plot_lines(output / "steps.png", {"steps": by_axis["steps"]}, "value", "steps", logarithmic=True)
        clock = "cpu_seconds" if on_cpu else "seconds"
        report.plot_time(
            output / "time.png", [{**row, "steps": row["value"]} for row in by_axis["steps"]], clock, "steps", device
        )
        plots += ["steps.png", "time.png"]
    columns = ["axis", "value", *report.measures_of(rows), *report.COSTS]
    report.write_table(output, NAME, rows, columns, text, plots)
