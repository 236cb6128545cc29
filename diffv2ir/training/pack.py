"""From the folders of a finished chain to one bundle in half precision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file

from diffv2ir import bundle, phases
from diffv2ir.files import write_atomically
from diffv2ir.pipeline import DiffV2IRPipeline

# A larger file does not belong in a git repository.
MAX_FILE_SIZE = "15MB"
# Entry of an adapter's header, as diffusers names it.
_LORA_CONFIG = "lora_adapter_metadata"


def pack_bundle(
    general: Path,
    styles: dict[str, Path],
    target: Path,
    name: str,
    defaults: dict,
    early: tuple[Path, Path] | None = None,
    phrases: Sequence[str] | None = None,
) -> Path:
    """Write a bundle: the components of `general` and the adapters of other bundles, all in half precision.

    Args:
        styles: style name -> the bundle (a phase-3 result) that holds it.
        defaults: changes to the general bundle's default settings.
        early: the results of base and phase 1; given, the bundle holds these phases too (`diffv2ir.phases`).
        phrases: see `DiffV2IRPipeline`; None = those of `general`.
    """

    def write(folder: Path) -> None:
        pipe = DiffV2IRPipeline.from_pretrained(general, dtype=torch.float16)
        pipe.segmenter.half()  # loaded in float32, in which it works
        pipe.save_pretrained(folder, max_shard_size=MAX_FILE_SIZE)
        for style, source in styles.items():
            _pack_adapter(source / bundle.STYLES / style, folder / bundle.STYLES / style)
        if early:
            base, phase1 = early
            unet = UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float16)
            unet.save_pretrained(folder / bundle.PHASES / phases.BASE, max_shard_size=MAX_FILE_SIZE)
            adapter = phase1 / bundle.STYLES / phases.INFRARED
            _pack_adapter(adapter, folder / bundle.PHASES / phases.INFRARED)
        index = json.loads((folder / bundle.INDEX).read_text())
        index["styles"] = list(dict.fromkeys([*index["styles"], *styles]))
        for source in styles.values():
            index["bands"] |= json.loads((source / bundle.INDEX).read_text()).get("bands", {})
        index["defaults"] = pipe.default_settings.replace(**defaults).to_dict()
        index["name"] = name
        if phrases is not None:
            index["phrases"] = list(phrases)
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


def _pack_adapter(source: Path, target: Path) -> None:
    """An adapter in half precision; its header holds rank, alpha and targets, as diffusers keeps them."""
    target.mkdir(parents=True, exist_ok=True)
    with safe_open(source / bundle.ADAPTER, "pt") as weights:
        halves = {key: weights.get_tensor(key).half().contiguous() for key in weights.keys()}
        config = json.loads(weights.metadata()[_LORA_CONFIG])
    # The targets were a set, and safetensors writes several entries in any order: the same weights, the same file.
    config["target_modules"] = sorted(config["target_modules"])
    save_file(halves, target / bundle.ADAPTER, {_LORA_CONFIG: json.dumps(config, indent=2, sort_keys=True)})
