"""Names on the command line to files and folders: those of `hub.SOURCES`, and the parts that were fetched before."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffv2ir import hub
from diffv2ir.hub_sources import HUB_ID
from diffv2ir.loading import CommandError

OFF = "none"
# Which of `hub.SOURCES` makes a bundle of a checkpoint, by the flag of the part.
DEFAULTS = {"--captioner": "blip", "--segmenter": "sam", "--tokenizer": "sd15"}

_TOKENIZER = "tokenizer/*"
# Of a BLIP in a repository of the hub.
_CAPTIONER = ("*.json", "*.txt", "model*.safetensors", "pytorch_model*.bin")
_FILES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")

Tell = Callable[[str], Any]


def locate_checkpoint(name: str, tell: Tell) -> Path:
    """A path as it is, or one of `hub.SOURCES` (or "NAME@REVISION"), fetched if it is not here.

    What lies here under such a name goes before the hub, and that is told.

    Raises:
        CommandError: there is no such file or folder, and it looks like a hub id. HubError: it cannot be fetched.
    """
    path, source = Path(name), _named(name, tell)
    if source is not None:
        return hub.download(source, tell=tell)
    if path.exists() or path.suffix in _FILES or not HUB_ID.fullmatch(name):
        return path
    known = [alias for alias, source in hub.SOURCES.items() if source.repo_id == name]
    if known:
        commands = " or ".join(f"`python -m diffv2ir fetch {alias}`" for alias in known)
        then = f"convert {' or '.join(known)}"
    else:
        folder = name.partition("/")[2]
        commands, then = f"`hf download {name} --local-dir {folder}`", f"convert {folder}, or the file of weights in it"
    raise CommandError(
        f"{name}: there is no such file or folder here. If it is a repository of the Hugging Face hub, fetch it first, "
        f"{commands}, then {then}"
    )


def locate_part(flag: str, name: str | None, tell: Tell) -> str | None:
    """A captioner, segmenter or tokenizer: fetched if it is named as in `hub.SOURCES`, else a path as it is.

    A captioner may also be a repository of the hub, "owner/name[@REVISION]". What lies here goes before the hub.

    Args:
        name: None = what `DEFAULTS` has, if it was fetched before; "none" = no such part.

    Returns:
        Path; None if there is none.

    Raises:
        CommandError: a name that has no tokenizer, for one. HubError: it cannot be fetched.
    """
    if name == OFF:
        return None
    if name is None:
        return _fetched_before(flag, tell)
    source = _named(name, tell)
    if source is not None:
        return str(_inner(flag, hub.download(_wanted(flag, name, source), tell=tell)))
    match = HUB_ID.fullmatch(name)
    if flag == "--captioner" and match is not None and not Path(name).exists():
        return str(hub.download(_captioner(*match.groups()), tell=tell))
    return str(_inner(flag, Path(name))) if Path(name).is_dir() else name


def fetch_part(flag: str, name: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """A captioner, segmenter or tokenizer by its name in `hub.SOURCES`.

    Raises:
        HubError: it cannot be fetched.
    """
    return _inner(flag, hub.download(_wanted(flag, name, hub.SOURCES[name]), cache_dir=cache_dir))


def _named(name: str, tell: Tell) -> hub.Source | None:
    """What `hub.SOURCES` has under a name, unless something of that name lies here."""
    source = hub.named(name)
    if source is not None and Path(name).exists():
        tell(f"{name}: the one in this folder is taken, not {source.what}")
        return None
    return source


def _captioner(repo_id: str, revision: str | None) -> hub.Source:
    known = hub.SOURCES[DEFAULTS["--captioner"]]
    if repo_id == known.repo_id:
        return replace(known, revision=revision or known.revision)
    return hub.Source(repo_id, "a captioner", revision or "main", patterns=_CAPTIONER)


def how_to_complete(flags: Collection[str]) -> str:
    """One sentence on how parts that are missing are got; empty if none of them can be fetched."""
    names = [name for flag, name in DEFAULTS.items() if flag in flags]
    if not names:
        return ""
    commands = ", ".join(f"`python -m diffv2ir fetch {name}`" for name in names)
    alone = " (or `--tokenizer sd15`, which fetches the tokenizer alone)" if "--tokenizer" in flags else ""
    return f"To complete it, run {commands}{alone} and convert again: what was fetched is taken by itself."


def _fetched_before(flag: str, tell: Tell) -> str | None:
    name = DEFAULTS[flag]
    try:
        path = _inner(flag, hub.here(_wanted(flag, name, hub.SOURCES[name])))
    except hub.HubError:
        return None
    if flag == "--tokenizer" and path.name != "tokenizer":  # a part of the repository that has none
        return None
    tell(f"{flag.removeprefix('--')}: {name}, which is here ({flag} {OFF} leaves it out)")
    return str(path)


def _wanted(flag: str, name: str, source: hub.Source) -> hub.Source:
    """What is wanted of a source: of a model with a tokenizer, for one, its megabyte of a tokenizer."""
    if flag != "--tokenizer":
        return source
    if _TOKENIZER not in source.patterns:
        able = ", ".join(alias for alias, other in hub.SOURCES.items() if _TOKENIZER in other.patterns)
        raise CommandError(f"--tokenizer {name}: it has no tokenizer of CLIP; {able} has, or give a folder")
    return replace(source, patterns=(_TOKENIZER,))


def _inner(flag: str, path: Path) -> Path:
    """The tokenizer in the folder of a whole model."""
    return path / "tokenizer" if flag == "--tokenizer" and (path / "tokenizer").is_dir() else path
