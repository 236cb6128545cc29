"""Files that a visitor downloads: made in a temporary folder, copied into Gradio's cache, which clears itself."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffv2ir.pipeline import Output
    from diffv2ir.ui.session import Result


def served_folder() -> Path:
    """A new folder inside Gradio's cache, whose files are deleted after a time like all others there."""
    from gradio.utils import get_upload_folder

    base = Path(get_upload_folder())
    base.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="diffv2ir-", dir=base))


@contextmanager
def removed_unless_whole(path: Path) -> Iterator[None]:
    """A file that is written within goes when that fails or the visitor leaves: Gradio clears what it handed out."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def saved(output: Output, bits: int = 8, photo: str = "") -> str:
    """The picture as a PNG that carries its settings; its name holds that of the photo, style and seed, and whether
    it has 16 bits."""
    depth = "" if bits == 8 else f"_{bits}bit"
    name = "_".join(filter(None, (photo, "infrared", output.settings.style, str(output.seed))))
    path = served_folder() / f"{name}{depth}.png"
    output.save(path, bits)
    return os.fspath(path)


def file_of(result: Result, bits: int = 8) -> str:
    """The result's `saved` file: written once, and again where the cache was cleared."""
    if not os.path.isfile(result.files.get(bits, "")):
        result.files[bits] = saved(result.output, bits, result.name)
    return result.files[bits]
