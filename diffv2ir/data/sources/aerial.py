"""Data sets taken from the air."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffv2ir.data.sources.base import Found, Source, folder, images, partners, subfolders
from diffv2ir.data.splits import block


def _aviid(root: Path) -> Iterator[Found]:
    for part in subfolders(root, r"AVIID-?\d"):
        names = ("{}A", "{}B") if (part / "trainA").is_dir() else ("visible/{}", "infrared/{}")
        for split in ("train", "test"):
            visible, infrared = (folder(part, name.format(split)) for name in names)
            for stem, first, second in partners(visible, infrared):
                yield Found(f"{part.name}/{split}/{stem}", f"{part.name}/{block(stem)}", second, first, split)


def _dronevehicle(root: Path) -> Iterator[Found]:
    for name in ("train", "val", "test"):
        place = folder(root, name)
        for stem, visible, infrared in partners(folder(place, f"{name}img"), folder(place, f"{name}imgr")):
            split = "test" if name == "test" else "train"
            yield Found(f"{name}/{stem}", f"{name}/{block(stem)}", infrared, visible, split)


def _vtuav(root: Path) -> Iterator[Found]:
    for part in subfolders(root, r"(train|test)_[SL]T_\d+"):
        for sequence in subfolders(part, r"(?!\.).+"):
            for stem, visible, infrared in partners(folder(sequence, "rgb"), folder(sequence, "ir")):
                name = f"{part.name}/{sequence.name}"
                yield Found(f"{name}/{stem}", sequence.name, infrared, visible, part.name.split("_")[0])


def _hit_uav(root: Path) -> Iterator[Found]:
    place = folder(root, "normal_json")
    for name in ("train", "val", "test"):
        for path in images(folder(place, name)):
            yield Found(path.stem, block(path.stem), path, split="test" if name == "test" else "train")


AERIAL = (
    Source(
        "aviid", "AVIID", "LWIR",
        "3,363 aligned pairs in three parts, of 434x434 and 512x512: vehicles on roads, from the air",
        "not confirmed, ask the authors", "github.com/silver-hzh/Averial-visible-to-infrared-image-translation",
        "`AVIID-N/{trainA,trainB,testA,testB}/` (A is visible) or `AVIID-N/{visible,infrared}/{train,test}/`, equal "
        "names", "the first as its users report it, the second assumed; copies with `vis/ ir/` and lists are not read",
        _aviid,
    ),
    Source(
        "dronevehicle", "DroneVehicle", "LWIR", "28,439 pairs of 840x712: traffic from a drone, day and night",
        "not confirmed, ask the authors", "github.com/VisDrone/DroneVehicle",
        "`train/{trainimg,trainimgr}/ val/{valimg,valimgr}/ test/{testimg,testimgr}/`, equal names",
        "known; a white border of 100 pixels is cut off, and 640x512 pixels are stored as PNG", _dronevehicle, 100,
    ),
    Source(
        "vtuav", "VTUAV", "LWIR", "500 sequences, 1.7 million pairs of 1920x1080: tracking from a drone",
        "not confirmed, ask the authors", "zhang-pengyu.github.io/DUT-VTUAV",
        "`{train,test}_{ST,LT}_NNN/SEQUENCE/{rgb,ir}/`, equal names",
        "known; a sequence, which some parts repeat, is a scene. The infrared is enlarged from 640x512, warped and "
        "cropped, says an author", _vtuav,
    ),
    Source(
        "hit-uav", "HIT-UAV", "LWIR", "2,898 infrared images of 640x512 from 60 to 130 m, no visible partner",
        "not confirmed: the repository names none, others name CC BY 4.0 or CC0 1.0 for doi.org/10.5281/zenodo.7633120",
        "github.com/suojiashun/HIT-UAV-Infrared-Thermal-Dataset", "`normal_json/{train,val,test}/`",
        "the authors' repository; names are time_altitude_angle_weather_number. Their split is drawn from the same "
        "videos: scenes that it cuts through are split anew", _hit_uav,
    ),
)  # fmt: skip
