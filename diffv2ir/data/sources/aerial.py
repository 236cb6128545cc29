"""Data sets taken from the air."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffv2ir.data.sources.base import Found, Source, block, folder, images, partners, subfolders


def _aviid(root: Path) -> Iterator[Found]:
    for part in subfolders(root, r"AVIID-\d"):
        for split in ("train", "test"):
            visible, infrared = folder(part, f"visible/{split}"), folder(part, f"infrared/{split}")
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
        "aviid", "AVIID", "LWIR", "over 3,000 aligned pairs in three parts: roads from a drone",
        "research", "github.com/silver-hzh/Averial-visible-to-infrared-image-translation",
        "`AVIID-N/{visible,infrared}/{train,test}/`, equal names",
        "assumed: the paper names three parts of pairs; the folders inside were not to be seen", _aviid,
    ),
    Source(
        "dronevehicle", "DroneVehicle", "LWIR", "28,439 pairs of 840x712: traffic from a drone, day and night",
        "research", "github.com/VisDrone/DroneVehicle",
        "`train/{trainimg,trainimgr}/ val/{valimg,valimgr}/ test/{testimg,testimgr}/`, equal names",
        "known; a white border of 100 pixels is cut off, and 640x512 pixels are stored as PNG", _dronevehicle, 100,
    ),
    Source(
        "vtuav", "VTUAV", "LWIR", "500 sequences, 1.7 million pairs of 1920x1080: tracking from a drone",
        "research", "zhang-pengyu.github.io/DUT-VTUAV",
        "`{train,test}_{ST,LT}_NNN/SEQUENCE/{rgb,ir}/`, equal names",
        "known; a sequence, which some parts repeat, is a scene", _vtuav,
    ),
    Source(
        "hit-uav", "HIT-UAV", "LWIR", "2,898 infrared images of 640x512 from 60 to 130 m, no visible partner",
        "CC BY 4.0", "github.com/suojiashun/HIT-UAV-Infrared-Thermal-Dataset", "`normal_json/{train,val,test}/`",
        "the authors' repository; names are time_altitude_angle_weather_frame. Their split is drawn from the same "
        "videos: scenes that it cuts through are split anew", _hit_uav,
    ),
)  # fmt: skip
