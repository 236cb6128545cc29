"""Miniature datasets for the tests: bright discs on a gradient, whose infrared is the inverted luminance."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffv2ir.training.diffusion import build_unet


def draw_scene(seed: int, size: tuple[int, int] = (96, 72)) -> tuple[Image.Image, Image.Image]:
    """A visible RGB image and its infrared gray image."""
    generator = np.random.default_rng(seed)
    width, height = size
    ys, xs = np.mgrid[:height, :width]
    canvas = np.stack([xs * 255 / width, ys * 255 / height, np.full_like(xs, 90)], axis=-1).astype(float)
    for _ in range(4):
        x, y, radius = generator.uniform(0, width), generator.uniform(0, height), generator.uniform(6, 18)
        canvas[(xs - x) ** 2 + (ys - y) ** 2 < radius**2] = generator.uniform(0, 255, 3)
    visible = Image.fromarray(canvas.astype(np.uint8))
    return visible, Image.eval(visible.convert("L"), lambda value: 255 - value)


def make_manifest_dataset(folder: Path, pairs: int = 8, infrared: int = 4) -> Path:
    """A folder with a manifest: two sources, captions for all pairs but the first."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(pairs + infrared):
        visible, thermal = draw_scene(number)
        alone = number >= pairs
        record = {
            "id": f"scene{number}",
            "kind": "infrared" if alone else "pairs",
            "source": "even" if number % 2 == 0 else "odd",
            "split": "test" if not alone and number == pairs - 1 else "train",
            "scene": f"place{number // 2}",
            "infrared": f"images/{number}_ir.png",
        }
        thermal.save(folder / record["infrared"])
        if not alone:
            record["visible"] = f"images/{number}.png"
            visible.save(folder / record["visible"])
            if number:
                record["caption"] = f"a scene with {number} discs in daylight"
        lines.append(json.dumps(record))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


def make_start_folder(bundle: Path, folder: Path, unet: bool = True) -> Path:
    """A text-to-image folder of a bundle's components with a UNet of 4 channels or, for the base, without one."""
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(bundle / name, folder / name)
    index = json.loads((bundle / "model_index.json").read_text())
    index = {name: index[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    index |= {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False}
    index |= {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    if unet:
        index["unet"] = ["diffusers", "UNet2DConditionModel"]
        torch.manual_seed(6)
        build_unet((16, 32), 1, 32, 2, norm_num_groups=8, in_channels=4, out_channels=4, sample_size=8).save_pretrained(
            folder / "unet"
        )
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
