"""The paper's checkpoints as bundles: fetched and converted at first use, and kept."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from diffv2ir import hub
from diffv2ir.files import cache_folder

logger = logging.getLogger(__name__)


def bundles_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """Where bundles that were made at first use are kept, there or not. `cache_dir`: another cache than the user's."""
    return (Path(cache_dir) if cache_dir else cache_folder()) / "bundles"


def released_folder(name: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """That of one of `hub_sources.RELEASED`, or of "NAME@REVISION"."""
    return bundles_folder(cache_dir) / name.replace("/", "--")


def released_bundle(name: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """The bundle of a released checkpoint with BLIP, SAM and the tokenizer of Stable Diffusion as `convert` takes them.

    It is made once; another process that wants it waits meanwhile. Arguments as of `released_folder`.

    Raises:
        HubError: something cannot be fetched. ConvertError, OSError: it cannot be converted.
    """
    from huggingface_hub.utils import WeakFileLock

    folder = released_folder(name, cache_dir)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            _make(name, folder, cache_dir)
    return folder


def _make(name: str, folder: Path, cache_dir: str | os.PathLike | None) -> None:
    from diffv2ir.convert.assemble import convert
    from diffv2ir.convert.names import DEFAULTS, fetch_part

    checkpoint = hub.download(hub.named(name), cache_dir=cache_dir)
    parts = {flag.removeprefix("--"): fetch_part(flag, part, cache_dir) for flag, part in DEFAULTS.items()}
    logger.info("%s: converting it, into %s", name, folder)
    converted = convert(checkpoint, folder, **parts, progress=lambda part: logger.info("%s ...", part))
    logger.info("%s: its weights are %s; the checkpoint itself is no longer needed", name, converted.unet_weights)
