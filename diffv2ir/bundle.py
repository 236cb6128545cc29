"""Bundles: a folder in the diffusers layout with every component of DiffV2IR. Finding and checking them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffv2ir.hub_sources import HUB_ID, RELEASED, is_released, named
from diffv2ir.schedule import check_schedule
from diffv2ir.settings import GENERAL_STYLE, MAP_STYLES, GenerationSettings
from diffv2ir.vlum.prompt import BANDS

TINY = "tiny"
INDEX = "model_index.json"
STYLES = "styles"
PHASES = "phases"
ADAPTER = "pytorch_lora_weights.safetensors"

# Component -> classes it may be of, and whether it has weights.
COMPONENTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "unet": (("UNet2DConditionModel",), True),
    "vae": (("AutoencoderKL", "AutoencoderTiny"), True),
    "text_encoder": (("CLIPTextModel",), True),
    "tokenizer": (("CLIPTokenizer", "CLIPTokenizerFast"), False),
    "scheduler": ((), False),
    "captioner": (("BlipForConditionalGeneration",), True),
    "captioner_processor": (("BlipProcessor",), False),
    "segmenter": (("SamSegmenter",), True),
}
# Sets of files, one of which must be there: without any, transformers makes an empty tokenizer and says nothing.
_VOCABULARIES = {
    "tokenizer": ({"tokenizer.json"}, {"vocab.json", "merges.txt"}),
    "captioner_processor": ({"tokenizer.json"}, {"vocab.txt"}),
}


class BundleError(ValueError):
    """A bundle that is not there, incomplete, or of another layout or shape."""


def resolve(name: str | os.PathLike, revision: str | None = None, cache_dir: str | os.PathLike | None = None) -> Path:
    """The folder of a bundle.

    Args:
        name: "tiny" (the embedded bundle; the environment variable DIFFV2IR_TINY names another place for it); a folder;
            the id "owner/name" of a repository on the Hugging Face hub, which is downloaded once; or one of
            `hub_sources.RELEASED`, which is downloaded and converted once. "NAME@REV" takes another commit, branch or
            tag than the newest state.
        revision: the same; what follows the "@" goes first.

    Raises:
        BundleError: not found, or it cannot be fetched or converted.
    """
    if str(name) == TINY:
        return _resolve_tiny()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.absolute()  # a folder of the name "tiny" is not taken for the embedded bundle when asked again
    if named(str(name)) is not None and not folder.exists():
        return _released(str(name), revision, cache_dir)
    match = HUB_ID.fullmatch(str(name))
    if match is None or folder.exists():
        raise BundleError(
            f"{name}: no such folder (a bundle is 'tiny', a folder, a hub id 'owner/name' or 'owner/name@REVISION', "
            f"or one of {', '.join(RELEASED)})"
        )
    return _download(match[1], match[2] or revision, cache_dir)


def _resolve_tiny() -> Path:
    wish = os.environ.get("DIFFV2IR_TINY")
    if wish:
        if not Path(wish).is_dir():
            raise BundleError(f"{wish}: no such folder (environment variable DIFFV2IR_TINY)")
        return Path(wish)
    package = Path(__file__).resolve().parent
    places = [package.parent / "assets" / TINY, package / "assets" / TINY]
    for folder in places:
        if folder.is_dir():
            return folder
    raise BundleError(f"the embedded bundle is not there: looked in {' and '.join(map(str, places))}")


def _released(name: str, revision: str | None, cache_dir: str | os.PathLike | None) -> Path:
    from diffv2ir.convert.checkpoint import ConvertError
    from diffv2ir.convert.released import released_bundle
    from diffv2ir.hub import HubError

    if not is_released(name):
        raise BundleError(f"{name} is not a bundle: {named(name).what}")
    try:
        return released_bundle(name if "@" in name or not revision else f"{name}@{revision}", cache_dir)
    except (HubError, ConvertError, OSError) as error:
        raise BundleError(f"{name}: {error}") from error


def _download(name: str, revision: str | None, cache_dir: str | os.PathLike | None) -> Path:
    from diffv2ir import hub

    parts = (INDEX, "README.md", f"{STYLES}/**", f"{PHASES}/**", *(f"{component}/*" for component in COMPONENTS))
    try:
        return hub.download(hub.Source(name, "a bundle", revision or "main", patterns=parts), cache_dir=cache_dir)
    except hub.HubError as error:
        raise BundleError(str(error)) from error


def check(folder: str | os.PathLike) -> None:
    """Refuse a folder that is not a complete DiffV2IR bundle. Reads configs and weight headers only.

    Raises:
        BundleError: naming everything that is missing or does not fit.
    """
    folder = Path(folder)
    index = _read_json(folder / INDEX, f"{folder} is not a bundle")
    if index.get("_class_name") != "DiffV2IRPipeline":
        raise BundleError(f"{folder} holds a {index.get('_class_name', 'model of no class')}, not a DiffV2IRPipeline")
    problems = [problem for name in COMPONENTS for problem in _component_problems(folder, index, name)]
    if not problems:
        problems = _shape_problems(folder) + _scheduler_problems(folder) + _default_problems(folder, index)
    if problems:
        raise BundleError(f"{folder} cannot be used:\n" + "\n".join(f"- {problem}" for problem in problems))


def content_hash(folder: str | os.PathLike) -> str:
    """SHA-256 over names and contents of all weight files of a bundle: which model made a picture.

    Contents, not headers and sizes, which two trainings of one architecture share. Takes some seconds for gigabytes.
    """
    digest = hashlib.sha256()
    files = (path for path in Path(folder).rglob("*") if path.suffix in (".safetensors", ".bin"))
    for path in sorted(files):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_weights(folder: Path, components: Mapping[str, Any]) -> None:
    """Refuse weights that left a part of a loaded model as it was initialised, which the loaders only warn about.

    Raises:
        BundleError: a component has more numbers than its files hold.
    """
    for name, (_, has_weights) in COMPONENTS.items():
        files = list((folder / name).glob("*.safetensors"))
        if not has_weights or not files or name not in components:
            continue
        stored = sum(math.prod(shape) for path in files for shape in _stored_shapes(path).values())
        needed = sum(parameter.numel() for parameter in components[name].parameters())
        if stored < needed:
            problem = f"{name}: the weights are incomplete ({stored} numbers, the model has {needed})"
            raise BundleError(f"{folder} cannot be used:\n- {problem}")


def is_half(folder: Path) -> bool:
    """Whether the UNet of a bundle is stored in half precision, by the headers of its safetensors."""
    from safetensors import SafetensorError, safe_open

    kinds = set()
    for path in (folder / "unet").glob("*.safetensors"):
        try:
            with safe_open(path, "np") as weights:
                kinds |= {weights.get_slice(key).get_dtype() for key in weights.keys()}
        except (SafetensorError, OSError):
            return False  # `check` says what is wrong with it
    return bool(kinds) and kinds <= {"F16", "BF16"}


def copy_style(source: Path | None, target: Path, style: str) -> None:
    """Copy a style's adapter from one bundle to another.

    Raises:
        BundleError: it is in neither of them.
    """
    own = target / STYLES / style / ADAPTER
    if own.is_file():
        return
    if source is None or not (source / STYLES / style / ADAPTER).is_file():
        raise BundleError(f"style {style!r}: there is no adapter to save")
    own.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / STYLES / style / ADAPTER, own)


def _component_problems(folder: Path, index: dict[str, Any], name: str) -> list[str]:
    classes, _ = COMPONENTS[name]
    entry = index.get(name)
    if not isinstance(entry, list) or len(entry) != 2 or not entry[1]:
        return [f"{name}: not listed in {INDEX}"]
    if classes and entry[1] not in classes:
        return [f"{name}: expected {' or '.join(classes)}, got {entry[1]}"]
    return folder_problems(folder, name)


def folder_problems(folder: Path, name: str) -> list[str]:
    """What the folder of one component lacks, by its files and weight headers; empty if nothing."""
    if not (folder / name).is_dir():
        return [f"{name}: the folder is missing"]
    if not any((folder / name).glob("*.json")):
        return [f"{name}: no config file"]
    if name in _VOCABULARIES:
        wanted, there = _VOCABULARIES[name], {path.name for path in (folder / name).iterdir()}
        if not any(files <= there for files in wanted):
            return [f"{name}: no vocabulary ({' or '.join(' with '.join(sorted(files)) for files in wanted)})"]
    if not COMPONENTS[name][1]:
        return []
    return [f"{name}: {problem}" for problem in model_problems(folder / name)]


def model_problems(folder: Path) -> list[str]:
    """What the folder of a model lacks, by its files and weight headers; empty if nothing."""
    if not (folder / "config.json").is_file():
        return ["config.json is missing"]
    weights = list(folder.glob("*.safetensors"))
    kind = "safetensors"
    if not weights and not any(folder.glob("*.safetensors.index.json")):
        kind, weights = "bin", list(folder.glob("*.bin"))
    missing = [problem for path in sorted(folder.glob(f"*.{kind}.index.json")) for problem in _missing_shards(path)]
    if not weights and not missing:
        return ["no weights (*.safetensors)"]
    return missing + [problem for path in weights for problem in weight_problems(path)]


def _missing_shards(index: Path) -> list[str]:
    """The files among which an index shares out the weights, and that are not there."""
    try:
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"{index.name} is damaged ({error})"]
    return [f"{file} is missing ({index.name} lists it)" for file in files if not (index.parent / file).is_file()]


def weight_problems(path: Path) -> list[str]:
    if path.suffix == ".bin":
        return []
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        return [f"{path.name} is damaged ({error})"]
    return []


def _shape_problems(folder: Path) -> list[str]:
    unet, vae, text = (_read_json(folder / part / "config.json", part) for part in ("unet", "vae", "text_encoder"))
    channels = vae.get("latent_channels", 4)
    width = text.get("hidden_size")
    wanted = {
        "in_channels": (3 * channels, f"3 x {channels}: noisy target, visible and segmentation latents"),
        "out_channels": (channels, "the latent channels of the vae"),
        "cross_attention_dim": (width, "the hidden size of the text encoder"),
    }
    problems = [
        f"unet: {key} must be {value} ({why}), got {unet.get(key)}"
        for key, (value, why) in wanted.items()
        if unet.get(key) != value
    ]
    stored = _stored_shape(folder / "unet", "conv_in.weight")
    if not problems and stored is not None and stored[1] != 3 * channels:
        problems.append(f"unet: the weights of conv_in have {stored[1]} input channels, the config says {3 * channels}")
    return problems


def _stored_shape(folder: Path, key: str) -> tuple[int, ...] | None:
    return next((shapes[key] for path in folder.glob("*.safetensors") if key in (shapes := _stored_shapes(path))), None)


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(path, "np") as weights:  # only shapes are read; "pt" would import torch
        return {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}


def _scheduler_problems(folder: Path) -> list[str]:
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return ["scheduler: scheduler_config.json is missing"]
    try:
        check_schedule(_read_json(path, "scheduler"))
    except ValueError as error:
        return [f"scheduler: {error}"]
    return []


def _default_problems(folder: Path, index: dict[str, Any]) -> list[str]:
    problems = []
    styles = index.get("styles") or [GENERAL_STYLE]
    map_style = index.get("map_style", MAP_STYLES[0])
    if map_style not in MAP_STYLES:
        problems.append(f"map_style must be one of {', '.join(MAP_STYLES)}, got {map_style!r}")
    for style in styles:
        if style != GENERAL_STYLE and not (folder / STYLES / str(style) / ADAPTER).is_file():
            problems.append(f"style {style!r}: {STYLES}/{style}/{ADAPTER} is missing")
    for style, band in (index.get("bands") or {}).items():
        if band not in BANDS:
            problems.append(f"bands: that of style {style!r} must be one of {', '.join(BANDS)}, got {band!r}")
    phrases = index.get("phrases", [])
    if not isinstance(phrases, list) or not all(isinstance(phrase, str) and phrase.strip() for phrase in phrases):
        problems.append(f"phrases must be a list of texts, got {phrases!r}")
    try:
        defaults = GenerationSettings.from_dict(index.get("defaults") or {})
    except (ValueError, TypeError) as error:
        return [*problems, f"defaults: {error}"]
    if defaults.style not in [GENERAL_STYLE, *styles]:
        problems.append(f"defaults: style {defaults.style!r} is not one of {', '.join(styles)}")
    return problems


def _read_json(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise BundleError(f"{what}: {path.name} is missing")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{what}: {path.name} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise BundleError(f"{what}: {path.name} must hold a JSON object")
    return content
