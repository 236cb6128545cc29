"""Parts in the layouts of diffusers and transformers, or of SAM's own checkpoint, into a bundle in float16."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BlipForConditionalGeneration, BlipProcessor, CLIPTokenizer

from diffv2ir.bundle import _VOCABULARIES
from diffv2ir.convert.checkpoint import ConvertError
from diffv2ir.convert.official import KeyProblems
from diffv2ir.vlum import SamSegmenter


def load_whole(model_class: type, source: Path) -> torch.nn.Module:
    """A model in float16 from a folder whose weights fit it exactly.

    Raises:
        ConvertError: it cannot be loaded, or weights are missing, unexpected or of another shape.
    """
    try:
        # Only a local folder: a name would be looked up on the hub.
        model, info = model_class.from_pretrained(
            source, dtype=torch.float16, output_loading_info=True, local_files_only=True
        )
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ConvertError(f"{source} is not a {model_class.__name__}: {error}") from error
    problems = KeyProblems(
        missing=list(info["missing_keys"]),
        unexpected=[key for key in info["unexpected_keys"] if not key.endswith("position_ids")],
        misshapen=[str(entry) for entry in info["mismatched_keys"]],
    )
    problems.raise_any(str(source))
    return model.eval()


def write_captioner(source: Path, folder: Path) -> None:
    """BLIP with its processor, from a folder, into `captioner` and `captioner_processor`.

    Raises:
        ConvertError: as `load_whole`; or there is no processor, or one without a vocabulary.
    """
    model = load_whole(BlipForConditionalGeneration, source)
    _check_vocabulary(source, "captioner_processor")
    model.save_pretrained(folder / "captioner")
    try:
        BlipProcessor.from_pretrained(source, local_files_only=True).save_pretrained(folder / "captioner_processor")
    except (OSError, ValueError) as error:
        raise ConvertError(f"{source} has no BlipProcessor: {error}") from error


def write_segmenter(source: Path, folder: Path) -> None:
    """SAM, from its official ViT-B checkpoint or a `SamSegmenter` folder.

    Raises:
        ConvertError: neither of them, or weights that do not fit.
    """
    if source.is_dir():
        segmenter = load_whole(SamSegmenter, source)
    else:
        try:
            segmenter = SamSegmenter.from_checkpoint(source).half()
        except (OSError, ValueError) as error:
            raise ConvertError(str(error)) from error
    segmenter.save_pretrained(folder / "segmenter")


def write_tokenizer(source: Path, folder: Path, vocabulary: int) -> None:
    """CLIP's tokenizer.

    Args:
        vocabulary: how many tokens the text encoder knows.

    Raises:
        ConvertError: not a tokenizer's folder, or one without a vocabulary, or the tokenizer of another text encoder.
    """
    _check_vocabulary(source, "tokenizer")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ConvertError(f"{source} is not the folder of a CLIPTokenizer: {error}") from error
    if len(tokenizer) != vocabulary:
        raise ConvertError(f"{source}: the tokenizer has {len(tokenizer)} tokens, the text encoder {vocabulary}")
    tokenizer.save_pretrained(folder / "tokenizer")


def _check_vocabulary(folder: Path, name: str) -> None:
    """Without these files transformers makes an empty tokenizer and says nothing."""
    if not folder.is_dir():
        raise ConvertError(f"{folder}: there is no such folder (the {name} is one)")
    wanted, there = _VOCABULARIES[name], {path.name for path in folder.iterdir()}
    if not any(files <= there for files in wanted):
        lists = " or ".join(" with ".join(sorted(files)) for files in wanted)
        raise ConvertError(f"{folder} has no vocabulary for the {name}: expected {lists} in it")
