"""`--start` and `--vlum` of the trainings: a folder, or what is to be fetched from the hub."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from diffv2ir import bundle, hub

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_lora_weights")
# Of repositories that hold weights in several kinds: those in float32, whole or in parts, and nothing beside them.
_PATTERNS = (
    bundle.INDEX,
    *(f"{name}/{file}" for name in bundle.COMPONENTS for file in ("*.json", "*.txt")),
    *(f"{name}/{file}{part}.safetensors" for name in bundle.COMPONENTS for file in _WEIGHTS for part in ("", "-*")),
    f"{bundle.STYLES}/**",
)


def locate_start(name: str, fetch: bool = True) -> Path:
    """The folder that a training starts from, or that holds captioner and segmenter.

    Args:
        name: "tiny"; a folder; a name of `hub.SOURCES` that is a folder, "sd15"; or a hub id "owner/name". What
            `hub.SOURCES` pins is taken as pinned; "NAME@REVISION" chooses another commit, tag or branch of either.
        fetch: False takes what was fetched before, and asks nobody.

    Returns:
        A path; of a local name as it is, there or not.

    Raises:
        HubError: it cannot be fetched; or, with `fetch` off, it is not here.
    """
    if name == bundle.TINY:
        return bundle.resolve(name)
    source = _source(name)
    if Path(name).is_dir() or source is None:
        return Path(name)
    if not fetch:
        try:
            return hub.here(source)
        except hub.HubError as error:
            raise hub.HubError(f"{name} is not here yet: a training fetches it, a dry run does not") from error
    folder = hub.download(source)
    logger.info("%s: %s", name, folder)  # its name is the commit
    return folder


def is_sd15(name: str) -> bool:
    """Whether `locate_start` takes a name for Stable Diffusion 1.5, of whichever commit."""
    source = _source(name)
    return source is not None and source.repo_id == hub.SOURCES["sd15"].repo_id


def _source(name: str) -> hub.Source | None:
    source = hub.named(name)
    if source is not None:
        return source if source.file is None else None
    match = _HUB_ID.fullmatch(name)
    if match is None:
        return None
    repository, revision = match.groups()
    pinned = [source for source in hub.SOURCES.values() if source.file is None and source.repo_id == repository]
    if pinned and revision is None:
        return pinned[0]
    return hub.Source(repository, "where a training starts", revision or "main", patterns=_PATTERNS)
