"""Tables in Markdown and CSV, and plots, of scored cells."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffv2ir.bootstrap import compare
from diffv2ir.measures import MEASURES as ALL_MEASURES

Row = dict[str, Any]

MEASURES = ("psnr", "ssim", "frechet_efficientnet_lite0")
COSTS = ("evaluations", "seconds", "cpu_seconds")
COST_NOTE = (
    "Times are of one photo on {device}: denoising and decoding, without caption, map and encoding, which are made "
    "once. Processor time is that of this process over all its threads: other work on the machine lengthens the "
    "seconds on the clock, not these. The Fréchet distance is not FID."
)
TITLES = {
    "psnr": "PSNR, dB",
    "psnr_difference": "PSNR less full row, dB",
    "ssim": "SSIM",
    "frechet_efficientnet_lite0": "Fréchet (EfficientNet-Lite0)",
    "seconds": "s per photo",
    "cpu_seconds": "processor s",
    "evaluations": "UNet evaluations",
    "count": "pairs",
}
_DECIMALS = {
    "psnr": 2,
    "psnr_difference": 2,
    "ssim": 3,
    "frechet_efficientnet_lite0": 0,
    "seconds": 2,
    "cpu_seconds": 2,
    "evaluations": 0,
}
# Measured where their networks are had.
_LITERATURE = ("fid", "kid", "lpips")
TITLES |= {name: ALL_MEASURES[name].title for name in _LITERATURE}
_DECIMALS |= {name: ALL_MEASURES[name].decimals for name in _LITERATURE}
_SIGNED = "psnr_difference"
_INTERVAL = "_interval"
NOTES = "notes.md"
_NOTHING = "–"


def measures_of(rows: Sequence[Row]) -> list[str]:
    """What a table of these rows shows: `MEASURES`, and of FID, KID and LPIPS what some row has."""
    return [*MEASURES, *(name for name in _LITERATURE if any(row.get(name) is not None for row in rows))]


def score_fields(score: Mapping[str, Any]) -> Row:
    """A camera's score as flat values: whatever it measures, an interval as NAME_low and NAME_high."""
    fields: Row = {}
    for name, value in score.items():
        if name.endswith(_INTERVAL):
            measure = name.removesuffix(_INTERVAL)
            fields[f"{measure}_low"], fields[f"{measure}_high"] = value
        else:
            fields[name] = value
    return fields


def difference_fields(images: Mapping[str, Any], full: Mapping[str, Any]) -> Row:
    """Mean and interval of PSNR less that of the full row, photo by photo.

    Args:
        images, full: the measures of every image, by its name; a PSNR of None is infinite.
    """
    first, second = (
        [math.inf if own[name]["psnr"] is None else own[name]["psnr"] for name in sorted(full)]
        for own in (images, full)
    )
    comparison = compare(first, second)
    low, high = comparison.interval
    return {"psnr_difference": comparison.difference, "psnr_difference_low": low, "psnr_difference_high": high}


def write_table(
    folder: Path, name: str, rows: Sequence[Row], columns: Sequence[str], text: Sequence[str], plots: Sequence[str] = ()
) -> Path:
    """Write `folder/NAME.md`, and `folder/NAME.csv` with every value of the rows; returns the former.

    Whatever `folder/notes.md` says, if there is one, is taken in at the end: words of a person outlast the numbers.

    Args:
        columns: of the Markdown table; an interval is written into the cell of its measure.
        text: paragraphs before (the first) and after the table. plots: names of pictures in the folder, to be shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    path, notes = folder / f"{name}.md", folder / NOTES
    first, *others = text
    parts = [first, markdown(rows, columns), *others]
    if plots:
        parts.append("\n".join(f"![{Path(plot).stem}]({plot})" for plot in plots))
    if notes.is_file():
        parts.append(notes.read_text(encoding="utf-8").strip())
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The rows as a Markdown table; a row with a true "default" is bold."""
    lines = [" | ".join(TITLES.get(column, column) for column in columns), " | ".join("---" for _ in columns)]
    for row in rows:
        cells = [_cell(row, column) for column in columns]
        if row.get("default"):
            cells = [f"**{cell}**" for cell in cells]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def _cell(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return _NOTHING
    decimals = _DECIMALS.get(column)
    if decimals is None:
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    if column == _SIGNED:
        return f"{value:+.{decimals}f} ({low:+.{decimals}f} to {high:+.{decimals}f})"
    interval = "" if low is None or high is None else f" ({low:.{decimals}f}–{high:.{decimals}f})"
    return f"{value:.{decimals}f}{interval}"


def plot_lines(path: Path, series: Mapping[str, Sequence[Row]], x: str, label: str, logarithmic: bool = False) -> None:
    """One panel a measure: lines over the rows' value `x`, with their intervals as bands."""
    measures = measures_of([row for rows in series.values() for row in rows])
    figure, axes = _panels(measures)
    for axis, measure in zip(axes, measures, strict=True):
        for name, rows in series.items():
            points = sorted((row for row in rows if row.get(measure) is not None), key=lambda row: row[x])
            xs = [row[x] for row in points]
            (line,) = axis.plot(xs, [row[measure] for row in points], "o-", label=name, markersize=4)
            if points and points[0].get(f"{measure}_low") is not None:
                bounds = ([row[f"{measure}_{end}"] for row in points] for end in ("low", "high"))
                axis.fill_between(xs, *bounds, color=line.get_color(), alpha=0.12, linewidth=0)
        if logarithmic:
            axis.set_xscale("log")
            ticks = sorted({row[x] for rows in series.values() for row in rows})
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
        axis.set_xlabel(label)
    axes[0].legend(fontsize=8)
    _save(figure, path)


def plot_time(path: Path, rows: Sequence[Row], clock: str, name: str, device: str) -> None:
    """Time against quality: one panel a measure, one point a row with its value `name`, joined in the order of time.

    Args:
        clock: "seconds", or "cpu_seconds".
    """
    measures = measures_of(rows)
    figure, axes = _panels(measures)
    for axis, measure in zip(axes, measures, strict=True):
        points = sorted((row for row in rows if row.get(measure) is not None), key=lambda row: row[clock])
        axis.plot([row[clock] for row in points], [row[measure] for row in points], "o-", markersize=4)
        for row in points:
            place = (row[clock], row[measure])
            axis.annotate(f"{name} {row[name]}", place, fontsize=8, xytext=(3, 3), textcoords="offset points")
        axis.set_xscale("log")
        axis.set_xlabel(f"{TITLES[clock]}, {device}", fontsize=8)
    _save(figure, path)


def plot_rows(path: Path, rows: Sequence[Row], labels: Sequence[str], measures: Sequence[str] | None = None) -> None:
    """One panel a measure: a point with its interval for each row, the first row on top."""
    measures = measures_of(rows) if measures is None else measures
    figure, axes = _panels(measures, height=1.2 + 0.24 * len(rows))
    for axis, measure in zip(axes, measures, strict=True):
        for place, row in enumerate(rows):
            if row.get(measure) is not None:
                axis.plot(row[measure], place, "o", color="C0", markersize=4)
            if row.get(f"{measure}_low") is not None:
                axis.plot([row[f"{measure}_low"], row[f"{measure}_high"]], [place, place], color="C0", linewidth=1)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_yticks(range(len(rows)), labels if axis is axes[0] else [""] * len(rows), fontsize=8)
    _save(figure, path)


def _panels(measures: Sequence[str], height: float = 3.4):
    """A figure with one titled panel a measure, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(measures), figsize=(4 * len(measures), height), layout="constrained")
    for axis, measure in zip(axes, measures, strict=True):
        axis.set_title(TITLES[measure], fontsize=10)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    return figure, axes


def _save(figure, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
