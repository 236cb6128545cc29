"""The bundle that is committed: complete, small enough, and able to do the main job."""

import json
import tomllib
from pathlib import Path

import pytest
from skimage.data import coffee

from diffv2ir import bundle
from diffv2ir.pipeline import DiffV2IRPipeline

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def folder() -> Path:
    return bundle.resolve("tiny")


@pytest.fixture(scope="module")
def tiny(folder) -> DiffV2IRPipeline:
    return DiffV2IRPipeline.from_pretrained(folder)


def test_it_is_complete_and_small(folder):
    bundle.check(folder)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert max(sizes) < 16 * MEGABYTE and sum(sizes) < 60 * MEGABYTE


def test_it_tells_nothing_of_the_machine_it_was_trained_on(folder):
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        assert not (isinstance(content, dict) and str(content.get("_name_or_path", "")).startswith("/")), path


def test_it_has_the_styles_of_its_card(tiny, folder):
    assert tiny.styles == ["general", "flir", "campus", "nir"]
    card = (folder / "README.md").read_text()
    assert all(f"`{style}`" in card for style in tiny.styles)


def test_it_translates_a_photo_in_every_style(tiny):
    conditioning = tiny.prepare(coffee())
    assert conditioning.caption
    assert len(conditioning.segmentation.getcolors(1 << 20)) > 2
    settings = tiny.default_settings.replace(seed=0)
    pictures = {style: tiny.generate(conditioning, settings.replace(style=style)).image for style in tiny.styles}
    assert {picture.size for picture in pictures.values()} == {(600, 400)}
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)
    for picture in pictures.values():
        low, high = picture.getextrema()
        assert high - low > 60  # a picture, not a gray field
    again = tiny.generate(conditioning, settings.replace(style="general")).image
    assert again.tobytes() == pictures["general"].tobytes()


def test_an_installation_has_every_package_and_the_bundle():
    root = Path(__file__).resolve().parent.parent
    setuptools = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent.relative_to(root).as_posix() for path in (root / "diffv2ir").rglob("__init__.py")}
    assert {name.replace(".", "/") for name in setuptools["packages"]} == folders | {"diffv2ir/assets"}
    assert setuptools["package-dir"]["diffv2ir.assets"] == "assets" and (root / "assets" / "tiny").is_dir()
