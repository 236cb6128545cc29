"""Finished measurements on disk, one JSON file each, named by a hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffv2ir import bundle
from diffv2ir.code import code_hash
from diffv2ir.efficientnet import EfficientNetView
from diffv2ir.files import write_file_atomically
from diffv2ir.measures import MEASURES
from diffv2ir.scores import View
from diffv2ir.training.learnt import digest


class Cells:
    """A folder of finished cells. A restart finds them and computes the others.

    Args:
        views: networks that the distances are measured with beside EfficientNet's: cells without them are others.

    Attributes:
        computed: how many cells this object has computed, not found.
    """

    def __init__(self, folder: Path, views: Sequence[View] | None = None):
        self.folder, self.computed = folder, 0
        self._views = sorted({view.frechet for view in views or ()} - {EfficientNetView.frechet})

    def path(self, key: Mapping[str, Any]) -> Path:
        """Where the cell of `key` lies, or will lie.

        Cells that other code of the package drew, or that measured less than is measured now, are not found.
        """
        measures = {"measures": sorted(MEASURES), "code": code_hash()}
        if self._views:
            measures["views"] = self._views
        return self.folder / f"{digest({**key, **measures})}.json"

    def get(self, key: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell's result: found, or computed and kept. Either way it is what JSON makes of it."""
        path = self.path(key)
        if not path.is_file():
            content = json.dumps({"key": key, "result": compute()}, indent=1)
            self.computed += 1
            write_file_atomically(path, lambda partial: partial.write_text(content, encoding="utf-8"))
        return json.loads(path.read_text(encoding="utf-8"))["result"]


def model_hash(folder: Path) -> str:
    """Hash of a model folder: its weights, and what they are used with: index, schedule, tokenizers, configurations."""
    texts = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".txt"))
    hashes = [(path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in texts]
    return digest([bundle.content_hash(folder), hashes])


def device_name(device: torch.device) -> str:
    """The device as people know it; of a processor with the threads that torch may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{names[0] if names else platform.machine()}, {threads} thread{'s' * (threads > 1)}"
