"""Files that a visitor downloads: made in a temporary folder, copied into Gradio's cache, which clears itself."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffv2ir.pipeline import Output


def served_folder() -> Path:
    """A new folder inside Gradio's cache, whose files are deleted after a time like all others there."""
    from gradio.utils import get_upload_folder

    base = Path(get_upload_folder())
    base.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="diffv2ir-", dir=base))


def saved(output: Output, **options) -> str:
    """The picture as a PNG that carries its settings; its name holds style and seed."""
    path = served_folder() / f"infrared_{output.settings.style}_{output.seed}.png"
    output.save(path, **options)
    return os.fspath(path)
