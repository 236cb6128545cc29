"""Pictures of an evaluation that are kept as they are drawn: started again, it draws only the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from diffv2ir.code import code_hash
from diffv2ir.data import Example
from diffv2ir.evaluate import Translation, central_square, gray_square, settings_for
from diffv2ir.imaging import ImageError, content_hash, open_image
from diffv2ir.lines import append_lines, read_lines
from diffv2ir.outputs import output_path, save_outputs
from diffv2ir.scores import PROTOCOL
from diffv2ir.settings import GenerationSettings

if TYPE_CHECKING:
    from diffv2ir.pipeline import DiffV2IRPipeline

RECORD = "pictures.jsonl"


class KeptPictures:
    """A folder of pictures, `ID.png`, with a record of what made each: bundle, photo, settings, code and device.

    A picture is used again only if all of that is the same, and the file is as it was written.

    Args:
        without: the conditions that are switched off, see `translate_examples`.
    """

    def __init__(self, folder: Path, pipe: DiffV2IRPipeline, settings: GenerationSettings, without: Sequence[str] = ()):
        self.folder, self.settings = folder, settings
        place = [pipe.compute_device.type, str(pipe.unet.dtype)]
        self._common = [code_hash(), PROTOCOL, pipe.bundle_sha256, _texts(pipe.folder), *place, sorted(without)]
        self._known = _read(folder / RECORD)

    def find(self, examples: Iterable[Example]) -> dict[str, Translation]:
        """Example id -> its finished picture, beside photo and real infrared, of those examples that have one."""
        found = {}
        for example in examples:
            if not (known := self._known.get(example.id)):
                continue
            visible = central_square(open_image(example.visible))
            if known["made_by"] != self._made_by(example, visible):
                continue
            try:
                picture = open_image(output_path(self.folder, example.id)).convert("L")
            except ImageError:  # not there any more
                continue
            if content_hash(picture) == known["picture"]:
                found[example.id] = Translation(
                    example, visible, None, picture, gray_square(example.infrared), example.caption or ""
                )
        return found

    def save(self, translations: Sequence[Translation]) -> None:
        """Write the pictures, and then what made them.

        Raises:
            OSError: the folder cannot be written.
        """
        save_outputs(translations, self.folder)
        records = [
            {
                "id": one.example.id,
                "made_by": self._made_by(one.example, one.visible),
                "picture": content_hash(one.infrared),
            }
            for one in translations
        ]
        append_lines(self.folder / RECORD, records)

    def _made_by(self, example: Example, visible: Image.Image) -> str:
        own = settings_for(example, self.settings).to_dict()
        return hashlib.sha256(json.dumps([*self._common, own, content_hash(visible)]).encode()).hexdigest()


def _texts(folder: Path) -> list[list[str]]:
    """What a bundle's weights are used with: index, schedule, tokenizers, configurations."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".txt"))
    return [[path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()] for path in files]


def _read(path: Path) -> dict[str, dict[str, str]]:
    """The last record of each example."""
    known = {}
    for record in read_lines(path):
        try:
            known[record["id"]] = {name: record[name] for name in ("made_by", "picture")}
        except (ValueError, LookupError, TypeError):
            continue
    return known
