"""`--start` and `--vlum` of the trainings: a folder, or what is fetched from the hub; and what has to be there."""

from __future__ import annotations

import logging
from pathlib import Path

from diffv2ir import bundle, hub
from diffv2ir.convert.parts import write_captioner, write_segmenter
from diffv2ir.convert.released import released_folder
from diffv2ir.files import write_atomically
from diffv2ir.hub_sources import HUB_ID, is_released
from diffv2ir.training.loop import process_state

logger = logging.getLogger(__name__)

START = ("vae", "text_encoder", "tokenizer", "scheduler", "unet")
VLUM = ("captioner", "captioner_processor", "segmenter")
NOT_HERE = "is not here yet: a training fetches it, a dry run does not"
PUBLISHED_VLUM = "blip+sam"
"""Name of the captioner and segmenter that are taken where nobody gives others."""

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
        name: "tiny"; a folder; "sd15"; one of the paper's checkpoints, as `bundle.resolve` takes them; or a hub id
            "owner/name". What `hub.SOURCES` pins is taken as pinned; "NAME@REVISION" chooses another commit, tag or
            branch of any.
        fetch: False takes what was fetched before, and asks nobody.

    Returns:
        A path; of a local name as it is, there or not.

    Raises:
        HubError: it cannot be fetched; or, with `fetch` off, it is not here. BundleError: it cannot be converted.
    """
    if name == bundle.TINY:
        return bundle.resolve(name)
    if is_released(name) and not Path(name).exists():
        if not fetch and not released_folder(name).is_dir():
            raise hub.HubError(f"{name} {NOT_HERE}")
        return bundle.resolve(name)
    source = hub_source(name)
    if Path(name).is_dir() or source is None:
        return Path(name)
    if not fetch:
        try:
            return hub.here(source)
        except hub.HubError as error:
            raise hub.HubError(f"{name} {NOT_HERE}") from error
    folder = hub.download(source)
    logger.info("%s: %s", name, folder)  # its name is the commit
    return folder


def locate_vlum(name: str | None, start: Path, phase: str, made: Path) -> Path | None:
    """The folder that holds captioner and segmenter; None for phase 1, which has none, and where it is `start`.

    Args:
        name: as of `locate_start`; or "blip+sam", which is also taken where there is no name and `start` has none of
            `VLUM`: BLIP and SAM as published, fetched if they are not here, and written into `made` in this layout.

    Raises:
        HubError: see `locate_start`. ValueError: what was fetched is not BLIP and SAM.
    """
    if phase == "1":
        return None
    if not wants_published(name, start):
        return locate_start(name) if name else None
    processes = process_state()
    if processes.is_main_process and not made.is_dir():
        logger.info("captioner and segmenter: blip and sam as published, into %s", made)
        blip, sam = (hub.download(hub.SOURCES[source]) for source in PUBLISHED_VLUM.split("+"))
        write_atomically(made, lambda folder: (write_captioner(blip, folder), write_segmenter(sam, folder)))
    processes.wait_for_everyone()
    return made


def wants_published(name: str | None, start: Path) -> bool:
    """Whether BLIP and SAM as published are to be taken, see `locate_vlum`."""
    if name is not None:
        return name == PUBLISHED_VLUM
    return start.is_dir() and not any((start / part).is_dir() for part in VLUM)


def check_parts(folder: Path, names: tuple[str, ...]) -> None:
    """Refuse a folder in which one of some components is not there or not whole.

    Raises:
        ValueError: names them.
    """
    if problems := part_problems(folder, names):
        raise ValueError("\n".join(problems))


def part_problems(folder: Path, names: tuple[str, ...]) -> list[str]:
    """What a folder lacks of some components, by its files and weight headers."""
    if not folder.is_dir():
        return [f"{folder}: no such folder"]
    return [f"{folder}: {problem}" for name in names for problem in bundle.folder_problems(folder, name)]


def is_sd15(name: str) -> bool:
    """Whether `locate_start` takes a name for Stable Diffusion 1.5, of whichever commit."""
    source = hub_source(name)
    return source is not None and source.repo_id == hub.SOURCES["sd15"].repo_id


def hub_source(name: str) -> hub.Source | None:
    """The folder on the hub that `locate_start` takes a name for; None if it is none, as a single file."""
    source = hub.named(name)
    if source is not None:
        return source if source.file is None else None
    match = HUB_ID.fullmatch(name)
    if match is None:
        return None
    repository, revision = match.groups()
    pinned = [source for source in hub.SOURCES.values() if source.file is None and source.repo_id == repository]
    if pinned and revision is None:
        return pinned[0]
    return hub.Source(repository, "where a training starts", revision or "main", patterns=_PATTERNS)
