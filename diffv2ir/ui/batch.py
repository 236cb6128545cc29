"""The Batch tab: many photos with the settings of the Translate tab, and one zip of all results."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from diffv2ir import imaging
from diffv2ir.batch import FAILED, STOPPED, PhotoResult, ResultsZip, output_paths, output_stems, translate_photos
from diffv2ir.settings import GenerationSettings
from diffv2ir.ui.background import Progress, follow
from diffv2ir.ui.common import duration, sentence, status
from diffv2ir.ui.requests import connect_start_and_stop

if TYPE_CHECKING:
    from diffv2ir.ui.page import Page

# The gallery shows the newest results, and small: all of them, in full, are in the zip.
_GALLERY = 24
_THUMBNAIL = 512

_HEADERS = ["File", "Status", "Caption", "Seconds"]
_HINT = "Choose photos or a folder to begin."


class BatchTab:
    """Many photos, translated one after the other.

    Attributes:
        inputs: all components that a batch reads, by name: photos, folder, session, the settings, new_seed, use_map,
            use_caption.
    """

    def __init__(self, page: Page):
        self.page = page
        self.inputs: dict[str, gr.components.Component] = {}

    def build(self) -> None:
        most = self.page.limits.photos
        gr.Markdown(
            f"Up to {most} photos of up to {imaging.pixel_limit():,} pixels, translated one after the other "
            "with the settings of the Translate tab. Each gets its own caption and map, where that tab uses them."
        )
        with gr.Row():
            self.photos = gr.File(label="Photos", file_count="multiple", height=180)
            self.folder = gr.File(label="or a folder of photos", file_count="directory", height=180)
            with gr.Column(scale=0, min_width=180):
                self.start_button = gr.Button("Translate all", variant="primary", size="lg")
                self.stop_button = gr.Button("Stop", variant="stop")
        self.status = gr.HTML(status(_HINT), elem_classes="status")
        self.zip = gr.File(label="All results (zip): pictures, maps, results.csv", interactive=False)
        # In percent: columns as wide as their longest cell would make the page wider than a phone.
        self.table = gr.Dataframe(
            headers=_HEADERS,
            datatype="str",
            label="Photos",
            interactive=False,
            wrap=True,
            max_height=320,
            column_widths=["25%", "30%", "27%", "18%"],
        )
        self.gallery = gr.Gallery(label=f"The newest {_GALLERY} results", columns=4, interactive=False, format="png")

    def connect(self) -> None:
        self.inputs = {"photos": self.photos, "folder": self.folder, **shared_inputs(self.page)}
        outputs = [self.status, self.table, self.gallery, self.zip]
        connect_start_and_stop(self, self.translate_all, outputs, api_name="batch")

    def translate_all(self, data: dict[str, Any]) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Translate many photos: a status line, a table of all photos, the newest pictures, and a zip of everything.

        Photos that cannot be used are reported in the table and the rest goes on. The zip comes last, also after a
        stop; it has `<name>_ir.png`, `<name>_map.png` and `results.csv`.
        """
        photos, skipped = _photos(data, self.page.limits.photos)
        settings, session, request = self.page.translate.read_settings(data), data["session"], data["request"]
        caption, segmentation = None if data["use_caption"] else "", None if data["use_map"] else False
        run = _Run(photos, time.monotonic())
        pipe = self.page.pipe
        with tempfile.TemporaryDirectory(prefix="diffv2ir-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            archive = folder / "diffv2ir-results.zip"

            def work(tell):
                def callback(number: int, step: int, steps: int) -> bool:
                    return tell(Progress(number, step, steps))

                with ResultsZip(archive, photos, settings) as results:
                    for result in translate_photos(pipe, photos, settings, caption, segmentation, callback):
                        results.add(result)
                        yield result

            yield run.status(), run.rows, [], None
            for event in follow(work, lambda: session.is_stopped(request)):
                if isinstance(event, Progress):
                    yield run.begin(event), run.rows if event.step == 0 else gr.skip(), gr.skip(), gr.skip()
                else:
                    run.end(event, folder)
                    yield run.status(), run.rows, run.gallery, gr.skip()
            yield run.summary(skipped), run.rows, run.gallery, str(archive)


class _Run:
    """How far a batch is, as the page shows it."""

    def __init__(self, photos: list[Path], started: float):
        self.rows = [[photo.name, "waiting", "", ""] for photo in photos]
        self.gallery: list[tuple[str, str]] = []
        self._stems = output_stems(photos)
        self._started = started
        self._counts: dict[str, int] = {}

    @property
    def _finished(self) -> int:
        return sum(self._counts.values())

    def begin(self, event: Progress) -> str:
        """A photo is in work: the status line."""
        self.rows[event.number][1] = "in work"
        return self.status(event.step / event.steps, f", step {event.step} of {event.steps}" if event.step else "")

    def end(self, result: PhotoResult, folder: Path) -> None:
        """A photo has ended: its row, and its picture, small, in `folder` for the gallery."""
        self._counts[result.status] = self._counts.get(result.status, 0) + 1
        caption, told = "", result.status
        if result.status == FAILED:
            told = f"failed: {sentence(result.error)}"
        if result.output is not None:
            caption = result.output.caption
            path = output_paths(folder, self._stems[result.number])[0]
            small = result.output.image.copy()
            small.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BICUBIC)
            small.save(path)
            self.gallery = [(str(path), result.name), *self.gallery][:_GALLERY]
        self.rows[result.number][1:] = [told, caption, f"{result.seconds:.1f}"]

    def status(self, part: float = 0.0, more: str = "") -> str:
        """The status line while working; `part` of the photo in work is done."""
        done, total = self._finished, len(self.rows)
        left = ""
        if done + part > 0:
            seconds = (time.monotonic() - self._started) / (done + part) * (total - done - part)
            left = f", about {duration(seconds)} left"
        return status(f"Photo {min(done + 1, total)} of {total}{more}{left}", round(100 * (done + part)), 100 * total)

    def summary(self, skipped: int) -> str:
        failed, stopped = self._counts.get(FAILED, 0), self._finished < len(self.rows) or STOPPED in self._counts
        done = self._finished - failed - self._counts.get(STOPPED, 0)
        parts = [f"{'Stopped' if stopped else 'Done'}: {done} of {len(self.rows)} photos translated"]
        if failed:
            parts.append(f"{failed} failed, see the table")
        if skipped:
            parts.append(f"{skipped} other file{'s' * (skipped != 1)} of the folder skipped")
        return status(f"{', '.join(parts)}. {duration(time.monotonic() - self._started)}.")


def shared_inputs(page: Page) -> dict[str, gr.components.Component]:
    """What batch and video read of the Translate tab, by name: session, settings, new_seed, use_map, use_caption."""
    names = {"session", "new_seed", "use_map", "use_caption", *GenerationSettings.__dataclass_fields__}
    return {name: component for name, component in page.translate.inputs.items() if name in names}


def _photos(data: dict[str, Any], most: int) -> tuple[list[Path], int]:
    """The photos asked for, and how many files of the folder are left out because their names are not of pictures.

    Raises:
        ValueError: none, or more than `most`.
    """
    chosen = [Path(path) for path in data["photos"] or []]
    # By name: Gradio keeps each upload in a folder of its own, whose name says nothing.
    folder = sorted((Path(path) for path in data["folder"] or []), key=lambda path: path.name)
    suffixes = Image.registered_extensions()
    pictures = [path for path in folder if path.suffix.lower() in suffixes]
    photos = chosen + pictures
    if not photos:
        raise ValueError("the folder has no pictures, choose another" if folder else "choose photos or a folder first")
    if len(photos) > most:
        raise ValueError(f"these are {len(photos)} photos and a batch takes at most {most}, choose fewer")
    return photos, len(folder) - len(pictures)
