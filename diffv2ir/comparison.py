"""Two methods on the same images: every measure, per camera and overall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffv2ir.bootstrap import Comparison, compare
from diffv2ir.measures import IMAGE_MEASURES, MEASURES
from diffv2ir.rows import text_rows
from diffv2ir.scores import OVERALL


def compare_images(
    first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Comparison]]:
    """Camera (`OVERALL` for all together) -> measure -> comparison, over the images where both have the measure.

    Args:
        first, second: the rows of the same images, by example id: `source` (or None) and measures, NaN if not defined.
    """
    sources = sorted({row["source"] for row in first.values() if row["source"] is not None})
    result: dict[str, dict[str, Comparison]] = {}
    for camera in [*sources, OVERALL]:
        keys = [key for key, row in first.items() if camera in (row["source"], OVERALL)]
        result[camera] = {}
        for measure in IMAGE_MEASURES:
            pairs = [(first[key].get(measure.name, math.nan), second[key].get(measure.name, math.nan)) for key in keys]
            defined = [pair for pair in pairs if not any(map(math.isnan, pair))]
            if defined:
                ones, others = zip(*defined, strict=True)
                result[camera][measure.name] = compare(ones, others, measure.better >= 0)
    return result


def table(result: Mapping[str, Mapping[str, Comparison]]) -> str:
    """One line for each camera and measure: difference, its interval, how often the first is better."""
    lines = [["camera", "images", "measure", "difference", "95 %", "first is"]]
    for camera, measures in result.items():
        for name, comparison in measures.items():
            measure = MEASURES[name]
            low, high = (measure.format(end, "+") for end in comparison.interval)
            word = "better" if measure.better else "higher"
            lines.append(
                [
                    camera,
                    str(comparison.count),
                    name,
                    measure.format(comparison.difference, "+") + measure.unit,
                    f"{low} to {high}",
                    f"{word} on {comparison.win_rate:.0%}",
                ]
            )
    return text_rows(lines)
