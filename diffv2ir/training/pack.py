"""From the folders of a finished chain to one bundle in half precision."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diffv2ir import bundle
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training.loop import write_atomically


def pack_bundle(general: Path, styles: dict[str, Path], target: Path, name: str, defaults: dict) -> Path:
    """Write a bundle: the components of `general` and the adapters of other bundles, all in half precision.

    Args:
        styles: style name -> the bundle (a phase-3 result) that holds it.
        defaults: changes to the general bundle's default settings.
    """

    def write(folder: Path) -> None:
        pipe = DiffV2IRPipeline.from_pretrained(general, torch_dtype=torch.float16)
        pipe.save_pretrained(folder)
        for style, source in styles.items():
            adapter = load_file(source / bundle.STYLES / style / bundle.ADAPTER)
            (folder / bundle.STYLES / style).mkdir(parents=True, exist_ok=True)
            halves = {key: value.half().contiguous() for key, value in adapter.items()}
            save_file(halves, folder / bundle.STYLES / style / bundle.ADAPTER, _metadata(source, style))
        index = json.loads((folder / bundle.INDEX).read_text())
        index["styles"] = list(dict.fromkeys([*index["styles"], *styles]))
        index["defaults"] = pipe.default_settings.replace(**defaults).to_dict()
        index["name"] = name
        (folder / bundle.INDEX).write_text(json.dumps(index, indent=2) + "\n")
        for path in folder.rglob("*.json"):
            _forget_origin(path)

    write_atomically(target, write)
    bundle.check(target)
    return target


def _forget_origin(path: Path) -> None:
    """Take out where the components were trained: a path of this machine that means nothing elsewhere."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _metadata(source: Path, style: str) -> dict[str, str] | None:
    """What diffusers keeps in an adapter's header: rank, alpha and targets."""
    from safetensors import safe_open

    with safe_open(source / bundle.STYLES / style / bundle.ADAPTER, "pt") as weights:
        return weights.metadata()
