"""Infrared without visible partners, and folders that are pairs already."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from diffv2ir.data.examples import DataError, is_image, read_examples
from diffv2ir.data.sources.base import (
    Found,
    Source,
    by_stem,
    folder,
    images,
    is_hidden,
    optional_folder,
    subfolders,
)
from diffv2ir.data.splits import block


def _lsotb_tir(root: Path) -> Iterator[Found]:
    """The training part, the evaluation part, or both: they are separate downloads."""
    training, evaluation = optional_folder(root, "TrainingData"), optional_folder(root, "sequences")
    if training is None and evaluation is None:
        folder(root, "TrainingData", "sequences")  # raises, and says what is there
    for part in subfolders(training, r"TIR_training_\d+") if training else ():
        for sequence in subfolders(part, r"(?!\.).+"):
            for path in images(sequence):
                name = f"{part.name}/{sequence.name}"
                yield Found(f"{name}/{path.stem}", name, path, split="train")
    for sequence in subfolders(evaluation, r"(?!\.).+") if evaluation else ():
        for path in images(folder(sequence, "img")):
            yield Found(f"{sequence.name}/{path.stem}", sequence.name, path, split="test")


def _raytron(root: Path) -> Iterator[Found]:
    inside = ((path, path.relative_to(root)) for path in sorted(root.rglob("*")) if is_image(path))
    files = [path for path, within in inside if not any(map(is_hidden, within.parents))]
    if not files:
        raise DataError(f"{root} holds no image, in no folder")
    for path in files:
        within = path.relative_to(root)
        yield Found(within.with_suffix("").as_posix(), (within.parent / block(path.stem)).as_posix(), path)


def _ir500k(root: Path) -> Iterator[Found]:
    """What has a name in rgb/ is a pair, the rest of ir/ infrared alone."""
    infrared = by_stem(images(folder(root, "ir")))
    places = (optional_folder(root, name) for name in ("rgb", "seg"))
    visible, maps = (by_stem(images(place)) if place else {} for place in places)
    if alone := sorted(visible.keys() - infrared.keys()):
        raise DataError(f"{root}: {len(alone)} image(s) of rgb/ have no partner in ir/: {', '.join(alone[:10])}")
    listed = _seeds(root / "seeds.json")
    if missing := sorted(listed - infrared.keys()):
        raise DataError(
            f"{root / 'seeds.json'} names {len(missing)} image(s) that ir/ lacks: {', '.join(missing[:10])}"
        )
    for stem, path in infrared.items():
        if not listed or stem in listed:
            yield Found(stem, block(stem), path, visible.get(stem), "train", maps.get(stem))


def _seeds(file: Path) -> set[str]:
    """The names in `seeds.json`: strings, or pairs of a name and a list of seeds as in InstructPix2Pix."""
    if not file.is_file():
        raise DataError(f"{file.parent} has no file seeds.json, which lists the examples of an IR-500K folder")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return {Path(entry if isinstance(entry, str) else entry[0]).stem for entry in entries}
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"{file} is no list of names, or of names with seeds: {error}") from error


def _folder(root: Path) -> Iterator[Found]:
    for example in read_examples(root):
        came = None if example.map_style else example.segmentation  # one that was made can be made again
        yield Found(
            example.id, example.scene, example.infrared, example.visible, example.split, came,
            example.caption, example.kind, example.source, example.band or None, example.joined,
        )  # fmt: skip


INFRARED = (
    Source(
        "lsotb-tir", "LSOTB-TIR", "LWIR", "1,400 sequences, 600,000 infrared frames: tracking, 47 kinds of objects",
        "academic research, not commercial (the repository's MIT licence is not the data's)",
        "github.com/QiaoLiuHit/LSOTB-TIR",
        "`TrainingData/TIR_training_NNN/SEQUENCE/ sequences/SEQUENCE/img/`",
        "known; the authors' README has the evaluation part put into `sequences/`", _lsotb_tir,
    ),
    Source(
        "raytron", "Raytron's open platform", "LWIR",
        "infrared images of several collections: roads, sea, air, security",
        "not confirmed, ask Raytron", "openai.raytrontek.com", "any tree of images",
        "assumed: its collections differ; a folder, in blocks of 100 numbers, is a scene. RAW files, of which one "
        "collection (noise reduction) is made, are not read", _raytron,
    ),
    Source(
        "ir500k", "IR-500K", "mixed",
        "the paper's released data: 500,000 infrared images; which have a visible partner: not confirmed",
        "not confirmed, ask the authors", "huggingface.co/datasets/Lidong26/IR-500K",
        "`ir/ [rgb/] [seg/] seeds.json`, equal names; what is in `ir/` only is infrared alone",
        "assumed: what the README of its code asks of one's own data (`rgb/ ir/ seg/ seeds.json`). What `seeds.json` "
        "holds is assumed: names, or InstructPix2Pix's [name, seeds]. 100 names on end are a scene", _ir500k,
    ),
    Source(
        "folder", "A folder of this project", "", "whatever `manifest.jsonl` or `rgb/ ir/ [seg/]` says", "yours",
        "-", "`manifest.jsonl`, or `ir/ [rgb/] [seg/]`", "it is this project's own", _folder,
    ),
)  # fmt: skip
