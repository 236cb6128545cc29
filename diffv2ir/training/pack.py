"""From the folders of a finished chain to one bundle in half precision."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diffv2ir import bundle
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.training.loop import write_atomically

# A larger file does not belong in a git repository.
MAX_FILE_SIZE = "15MB"


def pack_bundle(general: Path, styles: dict[str, Path], target: Path, name: str, defaults: dict) -> Path:
    """Write a bundle: the components of `general` and the adapters of other bundles, all in half precision.

    Args:
        styles: style name -> the bundle (a phase-3 result) that holds it.
        defaults: changes to the general bundle's default settings.
    """

    def write(folder: Path) -> None:
        pipe = DiffV2IRPipeline.from_pretrained(general, dtype=torch.float16)
        pipe.save_pretrained(folder, max_shard_size=MAX_FILE_SIZE)
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
            _tidy_config(path)

    write_atomically(target, write)
    bundle.check(target)
    return target


def _tidy_config(path: Path) -> None:
    """Take out of a config where the component was trained, and what diffusers itself would complain of:
    `AutoencoderTiny` writes `block_out_channels` but does not take it back."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return
    surplus = ["_name_or_path"] + ["block_out_channels"] * (content.get("_class_name") == "AutoencoderTiny")
    kept = {key: value for key, value in content.items() if key not in surplus}
    if kept != content:
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _metadata(source: Path, style: str) -> dict[str, str] | None:
    """What diffusers keeps in an adapter's header: rank, alpha and targets."""
    from safetensors import safe_open

    with safe_open(source / bundle.STYLES / style / bundle.ADAPTER, "pt") as weights:
        return weights.metadata()
