"""One checkpoint, with the parts it lacks, to a bundle, or to a folder that a training starts from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers

from diffv2ir import bundle
from diffv2ir.convert.checkpoint import ConvertError
from diffv2ir.convert.official import KeysError
from diffv2ir.convert.parts import write_captioner, write_segmenter, write_tokenizer
from diffv2ir.convert.sources import DiffusersFolder, OfficialFile
from diffv2ir.files import write_atomically
from diffv2ir.settings import GENERAL_STYLE, PRESETS, GenerationSettings

IN_CHANNELS = 12
STARTING_POINTS = {4: "Stable Diffusion", 8: "InstructPix2Pix", IN_CHANNELS: "DiffV2IR"}

_CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
_UNDERSTANDING = {
    "captioner": ["transformers", "BlipForConditionalGeneration"],
    "captioner_processor": ["transformers", "BlipProcessor"],
    "segmenter": ["diffv2ir.vlum.segment", "SamSegmenter"],
}


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote.

    Attributes:
        started_from: what the checkpoint was, by its input channels.
        missing: flags of the parts that it lacks to be a bundle; none if it is one.
        in_channels: of the UNet, as written.
        unet_weights: which ones of the UNet were taken: averaged or raw.
    """

    folder: Path
    started_from: str
    missing: tuple[str, ...]
    in_channels: int
    unet_weights: str

    def __str__(self) -> str:
        if not self.missing:
            return f"{self.folder}: a bundle, from a checkpoint of {self.started_from}"
        start = "train.phase1 or train.phase2 --start" if self.in_channels == 4 else "train.phase2 --start"
        use = "no training can start from it yet" if "--tokenizer" in self.missing else f"for {start}"
        return f"{self.folder}: {use}; to be a bundle it lacks {', '.join(self.missing)}"


def convert(
    source: Path,
    target: Path,
    *,
    ema: bool = True,
    widen: bool = True,
    captioner: Path | None = None,
    segmenter: Path | None = None,
    tokenizer: Path | None = None,
    progress: Callable[[str], None] = lambda part: None,
) -> Converted:
    """Write a checkpoint's models in float16 into a new folder: a bundle, or without all parts a training's start.

    Args:
        source: an official single file (`.ckpt`, `.safetensors`) of Stable Diffusion 1.x (4 input channels),
            InstructPix2Pix (8) or DiffV2IR (12), or a diffusers folder.
        ema: of an official file, take the averaged weights of the UNet where there are some.
        widen: to 12 input channels, the new ones at zero (Sec. 3.3 of the paper); phase 1 of the training needs 4.
        captioner: folder of BLIP. segmenter: `sam_vit_b_*.pth` or a `SamSegmenter` folder.
        tokenizer: folder of CLIP's tokenizer; None = that of `source`, if it has one.
        progress: called with the name of each part before it is written.

    Raises:
        ConvertError: `source` or a part does not fit, or `target` is there already; nothing is written then, but for
            a list of keys that do not fit, where the message would be too long: `TARGET.keys.txt`.
    """
    if target.exists():
        raise ConvertError(f"{target} is there already; choose a new folder")
    with _all_keys_listed(target.with_name(f"{target.name}.keys.txt")):
        return _convert(source, target, ema, widen, captioner, segmenter, tokenizer, progress)


@contextmanager
def _all_keys_listed(path: Path) -> Iterator[None]:
    """Write the keys that do not fit into `path` if there are more of them than the error names."""
    try:
        yield
    except KeysError as error:
        if not error.is_cut:
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{kind}: {key}\n" for kind, keys in error.keys.items() for key in keys))
        raise KeysError(f"{error}\nAll of them: {path}", error.keys) from error


def _convert(
    source: Path,
    target: Path,
    ema: bool,
    widen: bool,
    captioner: Path | None,
    segmenter: Path | None,
    tokenizer: Path | None,
    progress: Callable[[str], None],
) -> Converted:
    models = DiffusersFolder(source) if source.is_dir() else OfficialFile(source, ema)
    if models.in_channels not in STARTING_POINTS:
        known = ", ".join(f"{number} ({name})" for number, name in STARTING_POINTS.items())
        raise ConvertError(f"{source}: the UNet has {models.in_channels} input channels, expected one of {known}")
    tokenizer = tokenizer or models.tokenizer
    in_channels = IN_CHANNELS if widen else models.in_channels
    parts = {"--captioner": captioner, "--segmenter": segmenter, "--tokenizer": tokenizer}
    missing = [flag for flag, part in parts.items() if part is None]
    if in_channels != IN_CHANNELS:
        missing.append(f"{IN_CHANNELS} input channels")

    def write(folder: Path) -> None:
        # The small parts first: what is refused is refused before the long work.
        if tokenizer is not None:
            progress("tokenizer")
            write_tokenizer(tokenizer, folder, models.vocabulary)
        if segmenter is not None:
            progress("segmenter")
            write_segmenter(segmenter, folder)
        if captioner is not None:
            progress("captioner")
            write_captioner(captioner, folder)
        models.write(folder, in_channels, progress)
        _write_index(folder, source.stem, STARTING_POINTS[models.in_channels], is_bundle=not missing)

    write_atomically(target, write)
    return Converted(target, STARTING_POINTS[models.in_channels], tuple(missing), in_channels, models.unet_weights)


def _write_index(folder: Path, name: str, started_from: str, is_bundle: bool) -> None:
    index = {"_diffusers_version": diffusers.__version__, **_CLASSES}
    if is_bundle:
        # Weights that were published with the paper's code run as that code ran them.
        defaults = GenerationSettings().replace(**(PRESETS["paper-code"] if started_from == "DiffV2IR" else {}))
        settings = {"styles": [GENERAL_STYLE], "map_style": "union", "defaults": defaults.to_dict()}
        index = {"_class_name": "DiffV2IRPipeline", **index, **_UNDERSTANDING, **settings, "name": name}
    else:
        unused = {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
        index = {"_class_name": "StableDiffusionPipeline", **index, **unused, "requires_safety_checker": False}
    (folder / bundle.INDEX).write_text(json.dumps(index, indent=2) + "\n")
    if is_bundle:
        bundle.check(folder)
