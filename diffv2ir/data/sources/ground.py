"""Data sets taken from the ground: roads, streets, a campus.

Layouts marked "known" are those that the authors' repositories, or loaders that read their archives, show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from diffv2ir.data.examples import DataError
from diffv2ir.data.sources.base import Found, Source, folder, images, optional_folder, partners, subfolders
from diffv2ir.data.splits import block


def _m3fd(root: Path) -> Iterator[Found]:
    for stem, visible, infrared in partners(folder(root, "Vis", "vi"), folder(root, "Ir")):
        yield Found(stem, block(stem), infrared, visible)


def _flir_adas(root: Path) -> Iterator[Found]:
    """Infrared alone: the visible camera of the second edition sees a wider field and is not registered."""
    for name in ("images_thermal_train", "images_thermal_val", "video_thermal_test"):
        for path in images(folder(root, f"{name}/data")):
            scene = re.sub(r"-frame-.*", "", path.stem)
            yield Found(f"{name}/{path.stem}", scene, path, split="test" if name.endswith("test") else "train")


def _flir_aligned(root: Path) -> Iterator[Found]:
    place = folder(root, "JPEGImages")
    splits = {}
    for name, split in (("align_train.txt", "train"), ("align_validation.txt", "test")):
        file = next((file for file in (root / name, place.parent / name) if file.is_file()), None)
        if file is None:
            raise DataError(f"{root} has no file {name}, which says how FLIR-aligned is split")
        splits |= {re.sub(r"_PreviewData$", "", line.strip()): split for line in file.read_text().splitlines()}
    for infrared in images(place):
        if not infrared.stem.endswith("_PreviewData"):
            continue
        stem = infrared.stem.removesuffix("_PreviewData")
        visible = place / f"{stem}_RGB.jpg"
        if not visible.is_file():
            raise DataError(f"{infrared} has no partner {visible.name}")
        yield Found(stem, block(stem), infrared, visible, splits.get(stem), joined=_of_flir(stem))


def _llvip(root: Path) -> Iterator[Found]:
    for split in ("train", "test"):
        for stem, visible, infrared in partners(folder(root, f"visible/{split}"), folder(root, f"infrared/{split}")):
            yield Found(stem, stem[:2], infrared, visible, split)


def _kaist(root: Path) -> Iterator[Found]:
    for drive in subfolders(optional_folder(root, "images") or root, r"set\d\d"):
        split = "train" if int(drive.name[3:]) < 6 else "test"
        for video in subfolders(drive, r"V\d\d\d"):
            for stem, visible, infrared in partners(folder(video, "visible"), folder(video, "lwir")):
                yield Found(f"{drive.name}/{video.name}/{stem}", f"{drive.name}/{video.name}", infrared, visible, split)


def _msrs(root: Path) -> Iterator[Found]:
    for split in ("train", "test"):
        for stem, visible, infrared in partners(folder(root, f"{split}/vi"), folder(root, f"{split}/ir")):
            yield Found(stem, block(stem), infrared, visible, split)


def _roadscene(root: Path) -> Iterator[Found]:
    for stem, visible, infrared in partners(folder(root, "crop_LR_visible"), folder(root, "cropinfrared")):
        yield Found(stem, block(stem), infrared, visible, joined=_of_flir(stem))


def _of_flir(stem: str) -> str:
    """The scene over all sources of a frame of FLIR ADAS, first edition: RoadScene and FLIR-aligned both show them."""
    return f"flir-adas-v1/{block(stem)}" if re.fullmatch(r"FLIR_\d+", stem) else ""


GROUND = (
    Source(
        "m3fd", "M³FD", "LWIR", "4,200 aligned pairs, most of 1024x768: roads, campus, beach; day, overcast, night",
        "not confirmed, ask the authors", "github.com/JinyuanLiu-CV/TarDAL", "`Vis/ Ir/`, equal names",
        "names of the folders as its users report them (TarDAL's own loader: `vi/ ir/`, read too); 100 frames on end "
        "are a scene: users find none named in the download, and `meta/scenario.json`, in which TarDAL's loader "
        "looks for them, is not read", _m3fd,
    ),
    Source(
        "flir", "FLIR ADAS, second edition", "LWIR",
        "13,460 infrared frames by its README, 15,635 by its users' count, of 640x512 (by its users): driving",
        "FLIR's own, agreed to by downloading (flir.com/oem/adas/adas-dataset-agree); what they say: not confirmed",
        "adas-dataset-v2.flirconservator.com",
        "`images_thermal_train/data/ images_thermal_val/data/ video_thermal_test/data/`",
        "the archive's README; a file's name says its video, which is the scene. Its visible camera is not "
        "registered with the infrared one, so it gives infrared alone; for pairs take FLIR-aligned", _flir_adas,
    ),
    Source(
        "flir-aligned", "FLIR-aligned", "LWIR", "5,142 pairs of 640x512 warped onto each other: driving",
        "not confirmed; copies of it name FLIR ADAS's",
        "drive.google.com/file/d/1xHDMGl6HJZwtarNWkEV3T4O9X4ZQYz2Y, its authors' (Zhang et al., cyclic fuse-and-refine "
        "blocks, ICIP 2020, arxiv.org/abs/2009.12664)",
        "`JPEGImages/` with `*_RGB.jpg *_PreviewData.jpeg`, `align_train.txt align_validation.txt`",
        "known; black borders that the warp leaves on the visible images: not confirmed", _flir_aligned,
    ),
    Source(
        "llvip", "LLVIP", "LWIR",
        "15,488 aligned pairs of 1280x1024 (by its users): streets, 24 of 26 scenes in the dark, 2 by day",
        "not commercial, no identification of persons, cite", "github.com/bupt-ai-cz/LLVIP",
        "`visible/{train,test}/ infrared/{train,test}/`, equal names",
        "known; the first two digits of a name are taken to be the scene: not confirmed", _llvip,
    ),
    Source(
        "kaist", "KAIST Multispectral Pedestrian", "LWIR", "95,328 aligned pairs of 640x512: driving, day and night",
        "CC BY-NC-SA 4.0", "github.com/SoonminHwang/rgbt-ped-detection (users report its links as broken)",
        "`[images/]setNN/VNNN/{visible,lwir}/`, equal names",
        "known; sets 00 to 05 are the authors' training part, 06 to 11 their test. Their README says 640x480, their "
        "script 640x512", _kaist,
    ),
    Source(
        "msrs", "MSRS", "LWIR", "1,444 aligned pairs of 640x480: driving, day and night; infrared enhanced",
        "not confirmed, ask the authors (made of MFNet's images)", "github.com/Linfeng-Tang/MSRS",
        "`{train,test}/{vi,ir}/`, equal names", "the authors' repository; D or N ends a name by day or night", _msrs,
    ),
    Source(
        "roadscene", "RoadScene", "LWIR", "221 aligned pairs cut from FLIR's video: roads, vehicles, pedestrians",
        "not confirmed, ask the authors and FLIR", "github.com/hanna-xu/RoadScene",
        "`crop_LR_visible/ cropinfrared/`, equal names",
        "known (`crop_HR_visible/`, which users find not aligned, is not read)", _roadscene,
    ),
)  # fmt: skip
