"""The Grid tab: one to three settings against each other, from the same noise."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir import sheets
from diffv2ir.axes import AXES, suggestion
from diffv2ir.grid import MAX_CELLS, MEASURES, CellResult, Condition, Grid, plan, run
from diffv2ir.ui.background import Progress, follow
from diffv2ir.ui.common import by_name, duration, field_of, sentence, status
from diffv2ir.ui.downloads import removed_unless_whole, served_folder
from diffv2ir.ui.requests import connect_start_and_stop
from diffv2ir.ui.upload import Upload

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline
    from diffv2ir.settings import GenerationSettings
    from diffv2ir.ui.page import Page
    from diffv2ir.ui.session import Session

_NONE = "none"
_DIRECTIONS = ("columns", "rows", "sheets")
_TITLES = ("X: columns", "Y: rows", "Z: one grid below the other")
_AXES = ("text_scale", "visible_scale", _NONE)
_INTRODUCTION = (
    f"Up to {MAX_CELLS} pictures of one photo, all from the same noise. Photo, caption and what does not vary are "
    "those of the Translate tab. Write values as `1,2,3` or `1-5` or `1-5 (+2)` or `1-10 [5]` (five, evenly spaced), "
    "names of samplers, styles, bands and orders, and `on, off` for caption and map."
)
_HINT = "Choose a photo on the Translate tab, then start."
_READY = "Press Start: the grid is drawn of the photo on the Translate tab."

_ENDPOINT = (
    "A grid of one photo under settings that vary, all cells from the same noise. "
    f'An axis is one of {", ".join(AXES)}, or "none" for rows and sheets; values as in 1,2,3 or 1-5 (+2) or 1-10 [5], '
    'names, or "on, off". Without a caption the model writes it. With a real infrared picture each cell is compared '
    "with it. Gives a status line, the cells, one picture of all, and three files: that picture, all cells (zip) and a "
    "table (CSV); also after a stop."
)

# Cells of one axis alone may be wrapped into rows without a loss.
_MOST_IN_A_ROW = 8

# What is shown of a cell; the zip has the whole picture.
_SHOWN = 384


class GridTab:
    """Axes, what they cost, the cells as they are done, and one picture of all with its legend.

    Attributes:
        inputs: all components that a grid reads, by name: session, photo, the settings, new_seed, use_map, use_caption,
            columns_axis, columns_values, rows_..., sheets_..., measure, caption, own_map, real.
    """

    def __init__(self, page: Page):
        self.page = page
        self.axes: dict[str, tuple[gr.Dropdown, gr.Textbox]] = {}
        self.inputs: dict[str, gr.components.Component] = {}

    def build(self) -> None:
        gr.Markdown(_INTRODUCTION)
        facts = self.page.facts
        for direction, title, axis in zip(_DIRECTIONS, _TITLES, _AXES, strict=True):
            values = "" if axis == _NONE else suggestion(axis, facts.defaults, facts.styles)
            with gr.Row():
                choices = [(_axis_title(name), name) for name in AXES]
                if direction != "columns":
                    choices = [("Nothing", _NONE), *choices]
                self.axes[direction] = (
                    gr.Dropdown(choices, value=axis, label=title, scale=1, min_width=200),
                    gr.Textbox(values, label=f"Values of the {direction}", scale=3, min_width=200),
                )
        with gr.Accordion("Compare each cell with the real infrared picture", open=False):
            with gr.Row():
                self.real = Upload(label="Real infrared", sources=["upload"], height=220)
                self.measure = gr.Radio(
                    [(name.upper(), name) for name in MEASURES], value=MEASURES[0], label="Number of each cell",
                    info="The best cell gets a frame. The table has both numbers.",
                )  # fmt: skip
        self.cost = gr.HTML(elem_classes="status")
        with gr.Row():
            self.start_button = gr.Button("Start", variant="primary")
            self.stop_button = gr.Button("Stop", variant="stop")
        self.status = gr.HTML(status(_HINT), elem_classes="status")
        self.gallery = gr.Gallery(
            label="Cells: click one to take its settings to the Translate tab", columns=3, height="max-content",
            object_fit="contain", allow_preview=False, interactive=False, format="png",
        )  # fmt: skip
        self.sheet = gr.Image(
            label="The whole grid", interactive=False, format="png", buttons=["download", "fullscreen"]
        )
        self.files = gr.File(
            label="Grid (PNG), cells (zip), table (CSV)", file_count="multiple", interactive=False, height=190
        )

    def connect(self) -> None:
        tab = self.page.translate
        axes = {
            f"{direction}_{part}": component
            for direction, pair in self.axes.items()
            for part, component in zip(("axis", "values"), pair, strict=True)
        }
        first = ("session", "photo", *tab.settings, "new_seed", "use_map", "use_caption")
        # Last what a program may leave out: then the caption is the model's.
        last = {"caption": tab.caption, "own_map": tab.own_map, "real": self.real}
        self.inputs = {**{name: tab.inputs[name] for name in first}, **axes, "measure": self.measure, **last}
        quietly = dict(api_visibility="private", show_progress="hidden", queue=False)
        for axis, values in self.axes.values():
            asked = {"axis": axis, **tab.settings, "new_seed": tab.controls.new_seed}
            axis.input(by_name(self.suggest, asked), list(asked.values()), values, **quietly)
        gr.on(
            [self.page.tabs.select, tab.infrared.change, *(component.change for component in axes.values())],
            by_name(self.tell_cost, self.inputs),
            list(self.inputs.values()),
            self.cost,
            trigger_mode="always_last",
            **quietly,
        )
        seen = {name: self.inputs[name] for name in ("session", "photo")}
        self.page.tabs.select(by_name(self.greet, seen), list(seen.values()), self.status, **quietly)
        # Apart from the drawing, whose gallery is what a program gets.
        self.start_button.click(by_name(self.lay_out, self.inputs), list(self.inputs.values()), self.gallery, **quietly)
        outputs = [self.status, self.gallery, self.sheet, self.files]
        connect_start_and_stop(self, self.draw, outputs, tuple(last), api_name="grid", api_description=_ENDPOINT)
        self._connect_cells(quietly)

    def _connect_cells(self, quietly: dict[str, Any]) -> None:
        tab, chosen = self.page.translate, gr.State(None)
        wanted = {"session": self.page.session, "chosen": chosen}
        self.gallery.select(_index, None, chosen, **quietly).success(
            by_name(self.take_over, wanted),
            list(wanted.values()),
            [*tab.settings.values(), tab.controls.new_seed, tab.use_map, tab.use_caption, self.status],
            **quietly,
        )

    def suggest(self, data: dict[str, Any]) -> str:
        """Values worth comparing on an axis that was just chosen."""
        if data["axis"] == _NONE:
            return ""
        return suggestion(data["axis"], self.page.translate.read_settings(data), self.page.facts.styles)

    def tell_cost(self, data: dict[str, Any]) -> str:
        """Cells, evaluations and time, before anything starts; or what is wrong with the axes."""
        try:
            grid = self._plan(data)
        except ValueError as error:
            return status(f"⚠️ {sentence(str(error))}")
        return status(_cost(grid, data["session"]))

    def greet(self, data: dict[str, Any]) -> Any:
        """The status line before the first grid: what is still missing."""
        if data["session"].grid:
            return gr.skip()
        return status(_READY if data["photo"] else _HINT)

    def lay_out(self, data: dict[str, Any]) -> Any:
        """The gallery with as many columns as there are values of X."""
        try:
            grid = self._plan(data)
        except ValueError:  # told by the drawing
            return gr.skip()
        return gr.update(columns=_columns(grid))

    def draw(self, data: dict[str, Any]) -> Iterator[tuple[Any, Any, Any, Any]]:
        """What `_ENDPOINT` says, the cells as they are done."""
        if not data["photo"]:
            raise ValueError("choose a photo on the Translate tab first")
        grid, session, measure = self._plan(data), data["session"], data["measure"]
        pipe, started = self.page.pipe, time.monotonic()
        condition = self._condition(data, pipe, grid.cells[0].settings)
        folder, total = served_folder(), len(grid.cells)
        session.grid = results = []
        yield status(_cost(grid, session), 0, total), [], None, None
        path = folder / "diffv2ir-cells.zip"
        with removed_unless_whole(path), sheets.CellsZip(path) as archive:

            def work(tell):
                def callback(done: int, step: int, steps: int) -> bool:
                    return tell(Progress(done, step, steps))

                yield from run(pipe, grid, condition, callback, data["real"])

            for event in follow(work, lambda: session.is_stopped(data["request"])):
                if isinstance(event, Progress):
                    yield _progress(event, total, started), gr.skip(), gr.skip(), gr.skip()
                    continue
                archive.add(event)
                session.evaluation_seconds = event.seconds / event.output.evaluations
                results.append(_kept(event, folder))
                results.sort(key=lambda result: result.cell.place[::-1])
                yield gr.skip(), _items(grid, results, folder, measure), gr.skip(), gr.skip()
        text = status(_summary(grid, results, time.monotonic() - started))
        if not results:
            yield text, [], None, None
            return
        files = _write(grid, results, folder, measure)
        yield text, _items(grid, results, folder, measure), files[0], files

    def take_over(self, data: dict[str, Any]) -> dict:
        """The clicked cell's settings, in the Translate tab."""
        results = data["session"].grid
        if data["chosen"] is None or data["chosen"] >= len(results):
            raise ValueError("draw a grid first, then click one of its cells")
        tab, result = self.page.translate, results[data["chosen"]]
        return {
            **tab.controls.show(result.output.settings),
            tab.controls.new_seed: False,
            tab.use_map: result.cell.map,
            tab.use_caption: result.cell.caption,
            self.status: status(f"The Translate tab now has: {sheets.in_words(result.cell)}."),
        }

    def _plan(self, data: dict[str, Any]) -> Grid:
        axes = [
            (data[f"{direction}_axis"], data[f"{direction}_values"])
            for direction in _DIRECTIONS
            if data[f"{direction}_axis"] != _NONE
        ]
        # Before there is a photo, or where a program leaves it out, the model will write one.
        has_caption = not data["photo"] or data["caption"] is None or bool(data["caption"].strip())
        return plan(
            self.page.translate.read_settings(data),
            axes,
            self.page.facts.styles,
            use_caption=bool(data["use_caption"]),
            use_map=bool(data["use_map"]),
            has_caption=has_caption,
        )

    def _condition(self, data: dict[str, Any], pipe: DiffV2IRPipeline, settings: GenerationSettings) -> Condition:
        """Captions and maps for the cells; a caption that is drawn, by the seed of `settings`."""

        def condition(use_caption: bool, use_map: bool):
            caption = data["caption"] if use_caption else ""
            return data["session"].condition(
                pipe, data["photo"], caption, use_map, own_map=data["own_map"], **settings.preparation
            )

        return condition


def _columns(grid: Grid) -> int:
    columns = len(grid.axes[0].values)
    return columns if len(grid.axes) > 1 else min(columns, _MOST_IN_A_ROW)


def _axis_title(name: str) -> str:
    switches = {"caption": "Caption on or off", "map": "Segmentation map on or off"}
    return switches.get(name) or field_of(name)["label"]


def _kept(result: CellResult, folder: Path) -> CellResult:
    """The result with a small picture, which is also a file of `folder`."""
    small = result.small(_SHOWN)
    small.output.image.save(_thumbnail(folder, small))
    return small


def _thumbnail(folder: Path, result: CellResult) -> str:
    return os.fspath(folder / f"cell-{sheets.name_of(result.cell)}.png")


def _items(grid: Grid, results: list[CellResult], folder: Path, measure: str) -> list[tuple[str, str]]:
    """Pictures and labels for the gallery."""
    items = []
    for result in results:
        number = sheets.score(result, measure, result is sheets.best(results, measure))
        text = sheets.title(grid, result.cell)
        items.append((_thumbnail(folder, result), f"{text}: {number}" if number else text))
    return items


def _write(grid: Grid, results: list[CellResult], folder: Path, measure: str) -> list[str]:
    """The files to download, the picture of the whole grid first."""
    sheet, cells, table = (folder / f"diffv2ir-{name}" for name in ("grid.png", "cells.zip", "grid.csv"))
    sheets.save_sheet(sheets.draw(grid, results, measure), sheet, grid)
    table.write_text(sheets.table(results, measure), encoding="utf-8")
    return [os.fspath(path) for path in (sheet, cells, table)]


def _cost(grid: Grid, session: Session) -> str:
    cells, evaluations = len(grid.cells), grid.evaluations
    text = f"{cells} cell{'s' * (cells != 1)}, {evaluations} evaluation{'s' * (evaluations != 1)} of the UNet"
    if not session.evaluation_seconds:
        return f"{text}; the time is unknown until the first picture of this visit"
    return f"{text}, about {duration(evaluations * session.evaluation_seconds)}"


def _progress(event: Progress, total: int, started: float) -> str:
    """The status line while working; the event's number is that of the finished cells."""
    done = event.number + event.step / event.steps
    left = ""
    if event.number:
        left = f", about {duration((time.monotonic() - started) / done * (total - done))} left"
    text = f"Cell {event.number + 1} of {total}, step {event.step} of {event.steps}{left}"
    return status(text, round(100 * done), 100 * total)


def _summary(grid: Grid, results: list[CellResult], seconds: float) -> str:
    done, total = len(results), len(grid.cells)
    if not done:
        return "Stopped before the first cell was finished."
    return f"{'Done' if done == total else 'Stopped'}: {done} of {total} cells, {duration(seconds)}."


def _index(event: gr.SelectData) -> int:
    return event.index
