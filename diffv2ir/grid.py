"""Grids: the same photo and the same noise under one to three settings that vary, to see what each of them does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from diffv2ir import imaging
from diffv2ir.axes import Axis, GridError, parse_axis
from diffv2ir.imaging import ImageSource
from diffv2ir.settings import GenerationSettings

if TYPE_CHECKING:
    from PIL import Image

    from diffv2ir.pipeline import Conditioning, DiffV2IRPipeline, Output

MAX_CELLS = 64
MEASURES = ("ssim", "psnr")

Callback = Callable[[int, int, int], Any]
Condition = Callable[[bool, bool], "Conditioning"]


@dataclass(frozen=True)
class Cell:
    """One picture of a grid: its place (column, row, sheet), its settings, and whether caption and map are on."""

    place: tuple[int, ...]
    values: tuple[Any, ...]
    settings: GenerationSettings
    caption: bool = True
    map: bool = True

    @property
    def evaluations(self) -> int:
        """Evaluations of the UNet that this cell takes: steps times the branches of Eq. 2 that are not zero."""
        import torch

        from diffv2ir.guidance import branch_weights, make_branches

        s, nothing = self.settings, torch.zeros(1, 1, 1, 1)
        weights = branch_weights(s.visible_scale, s.segmentation_scale, s.text_scale, s.branch_order)
        # The pipeline's own way of leaving branches out, so that the two cannot disagree.
        drawn, text = nothing if self.map else None, nothing[0] if self.caption else None
        branches = make_branches(weights, nothing, drawn, text, nothing[0], s.branch_order)
        return s.steps * len(branches)


@dataclass(frozen=True)
class CellResult:
    """A finished cell; `scores` by measure where there is a real picture to compare with, else empty."""

    cell: Cell
    output: Output
    seconds: float
    scores: dict[str, float] = field(default_factory=dict)

    def small(self, longest: int) -> CellResult:
        """The same with a picture of at most `longest` pixels a side and without map and levels, to be kept."""
        picture = self.output.image.copy()
        picture.thumbnail((longest, longest))
        return replace(self, output=replace(self.output, image=picture, segmentation=None, levels=None))


@dataclass(frozen=True)
class Grid:
    """All cells, checked before the first is drawn.

    Attributes:
        axes: of columns, rows and sheets; one to three.
        cells: the columns of the first row come first if there are rows: the last axis varies slowest.
    """

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...] = field(repr=False)

    @property
    def evaluations(self) -> int:
        return sum(cell.evaluations for cell in self.cells)


def plan(
    settings: GenerationSettings,
    axes: Sequence[tuple[str, str]],
    styles: Sequence[str] = (),
    use_caption: bool = True,
    use_map: bool = True,
    has_caption: bool = True,
    max_cells: int = MAX_CELLS,
) -> Grid:
    """The grid of `axes`, (name, text of values) for columns, rows and sheets, around `settings`.

    Without a seed one is drawn, for all cells.

    Args:
        styles: of the bundle; a cell may have no other. None given = any.
        use_caption, use_map: for cells whose axes do not say it.
        has_caption: whether there is a caption that can be on.

    Raises:
        GridError: no axis or more than three, an axis given twice, a value that is not understood or out of range, a
            caption to switch on where there is none, or more than `max_cells` cells.
    """
    if not 1 <= len(axes) <= 3:
        raise GridError(f"a grid has one to three axes, got {len(axes)}")
    parsed = tuple(parse_axis(name, text, styles) for name, text in axes)
    names = [axis.name for axis in parsed]
    for name in names:
        if names.count(name) > 1:
            raise GridError(f"{name} is on two axes; let each vary something else")
    if not has_caption and any(axis.name == "caption" and True in axis.values for axis in parsed):
        raise GridError("caption: there is none to switch on; write one, or let this axis vary something else")
    count = math.prod(len(axis.values) for axis in parsed)
    if count > max_cells:
        raise GridError(f"{count} cells are more than the {max_cells} that are allowed; take fewer values")
    if styles and "style" not in names and settings.style not in styles:
        raise GridError(f"style: {settings.style!r} is none of {', '.join(styles)}")
    settings = settings.with_seed()
    conditions = {"caption": use_caption and has_caption, "map": use_map}
    # Reversed: the columns vary fastest.
    places = (place[::-1] for place in product(*(range(len(axis.values)) for axis in reversed(parsed))))
    return Grid(parsed, tuple(_cell(settings, conditions, parsed, place) for place in places))


def run(
    pipe: DiffV2IRPipeline,
    grid: Grid,
    condition: Condition,
    callback: Callback | None = None,
    real: ImageSource | None = None,
) -> Iterator[CellResult]:
    """Draw the cells, one result after the other, all from the same noise unless the seed is an axis.

    Cells come style by style, so that weights are changed no more often than there are styles. On a CPU each is, bit by
    bit, what its settings give alone; elsewhere up to rounding.

    Args:
        condition: gives the photo's conditioning with caption and map on or off; asked once for each of the four.
        callback: called as callback(cells done, step, steps), with step 0 before a cell; returning False ends the work,
            and what is finished by then has been yielded.
        real: the real infrared picture of the scene, to compare each cell with.

    Raises:
        ValueError: before the first cell: a style or a number of steps that this bundle cannot do, or a real picture
            that cannot be compared with the photo.
    """
    _check(pipe, grid)
    known: dict[tuple[bool, bool], Conditioning] = {}
    reference = None if real is None else imaging.open_image(real)
    done = 0
    for batch in _batches(grid.cells, _batch_size(pipe)):
        first = batch[0]

        def goes_on(step: int, total: int, estimates: Any = None, done: int = done) -> bool:
            # After the last step there is nothing left to end: the cell is finished.
            return callback is None or callback(done, step, total) is not False or step == total

        if not goes_on(0, first.settings.steps):
            return
        switches = (first.caption, first.map)
        if switches not in known:
            known[switches] = condition(*switches)
            _scores(known[switches].image.convert("L"), reference)  # of another section? Told before the first cell
        started = time.perf_counter()
        seeds = [cell.settings.seed for cell in batch]
        outputs = pipe.generate_batch([known[switches]] * len(batch), first.settings, seeds, goes_on)
        if outputs[0].cancelled:
            return
        seconds = (time.perf_counter() - started) / len(batch)
        for cell, output in zip(batch, outputs, strict=True):
            yield CellResult(cell, output, seconds, _scores(output.image, reference))
        done += len(batch)


def best(results: Sequence[CellResult], measure: str = MEASURES[0]) -> CellResult | None:
    """The result that is nearest to the real picture by "ssim" or "psnr"; None where nothing was compared."""
    scored = [result for result in results if result.scores]
    return max(scored, key=lambda result: result.scores[measure], default=None)


def _cell(
    settings: GenerationSettings, conditions: dict[str, bool], axes: Sequence[Axis], place: tuple[int, ...]
) -> Cell:
    values = tuple(axis.values[index] for axis, index in zip(axes, place, strict=True))
    changes = {axis.name: value for axis, value in zip(axes, values, strict=True)}
    switches = {name: changes.pop(name, default) for name, default in conditions.items()}
    return Cell(place, values, settings.replace(**changes), **switches)


def _check(pipe: DiffV2IRPipeline, grid: Grid) -> None:
    from diffv2ir.samplers import build_scheduler

    for style in {cell.settings.style for cell in grid.cells}:
        if style not in pipe.styles:
            raise GridError(f"style: {style!r} is none of {', '.join(pipe.styles)}")
    for sampler, steps in {(cell.settings.sampler, cell.settings.steps) for cell in grid.cells}:
        build_scheduler(sampler, pipe.scheduler.config, steps)


def _batch_size(pipe: DiffV2IRPipeline) -> int:
    """Cells that share each evaluation of the UNet, if only their seeds differ. A CPU gains nothing by that."""
    return 1 if pipe.compute_device.type == "cpu" else 4


def _batches(cells: Sequence[Cell], size: int) -> Iterator[list[Cell]]:
    """Cells that differ in the seed alone, at most `size` at a time, style by style."""
    styles = list(dict.fromkeys(cell.settings.style for cell in cells))
    groups: dict[Any, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: styles.index(cell.settings.style)):
        groups.setdefault((cell.settings.replace(seed=None), cell.caption, cell.map), []).append(cell)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _scores(picture: Image.Image, reference: Image.Image | None) -> dict[str, float]:
    if reference is None:
        return {}
    from diffv2ir.reference import compare

    comparison = compare(picture, reference)
    return {measure: getattr(comparison, measure) for measure in MEASURES}
