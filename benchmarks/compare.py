"""Train or load the baselines, score them and ours on the same scenes, and write one table and one sheet.

`python -m benchmarks.compare --data DATASET --run DIR --minutes 30 --start PHASE1` trains what `DIR/trainings/METHOD`
lacks (regression and pix2pix for 30 minutes each; ip2p, from our phase 1, for the steps of `phase2.yaml`, or `--share`
of them, and then for those of `phase2-picture.yaml`) and writes

- `DIR/METHOD/ID.png`: every method's pictures, by the protocol of `python -m diffv2ir evaluate`;
- `DIR/table.md`, `DIR/table.csv`, `DIR/scores.json`: per camera and overall, with 95 % bootstrap intervals; the last
  also has the values of every image and what each training took;
- `DIR/sheet.jpg`: scenes of all cameras, chosen by the seed, with the picture of each method (the paper's Figure 3).

| method | what |
| --- | --- |
| constant | the mean level of the camera's training images; of a camera never trained on, that of all training images |
| visible_gray | the photo turned gray |
| regression | a plain U-Net, mean absolute error |
| pix2pix | as published |
| ip2p | our phase 2 with the photo and one fixed prompt, without caption and map |
| ours | `--bundle`, style general, its own settings; ip2p gets the same settings |

A training that is finished is loaded. One on other pairs than those of `--data`, or with another budget than that of
`--minutes` or `--share` where they are given, is refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.baselines import ip2p, networks, pictures, report
from benchmarks.baselines.pairs import training_pairs
from benchmarks.baselines.pix2pix import Pix2Pix
from benchmarks.baselines.regression import Regression
from benchmarks.baselines.training import (
    Budget,
    TrainingConfig,
    check_finished,
    finished,
    load_weights,
    train,
    training_record,
)
from diffv2ir.data import DataError, Example
from diffv2ir.evaluate import PROTOCOL, picture_hashes
from diffv2ir.loading import CommandError, add_model_arguments, load_pipeline
from diffv2ir.metrics import FRECHET_NAME
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.scores import distance_views
from diffv2ir.training.loop import TrainingError

logger = logging.getLogger(__name__)

LEARNERS = {"regression": Regression, "pix2pix": Pix2Pix}
NETWORKS = {"regression": networks.RegressionUNet, "pix2pix": networks.UnetGenerator}
METHODS = ("constant", "visible_gray", "regression", "pix2pix", "ip2p", report.OURS)


class Comparison:
    """One comparison: the scenes, the bundle, and how each method makes its pictures.

    Raises:
        DataError: the dataset cannot be used. CommandError: the bundle cannot be loaded.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.run
        self.scenes = pictures.read_scenes(options.data, options.split, options.limit)
        self.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.pipe = load_pipeline(options)
        self.settings = self.pipe.default_settings.replace(seed=0)

    @cached_property
    def pairs(self) -> list[Example]:
        """What regression and Pix2Pix learn from, and the constant."""
        return training_pairs(self.options.data)

    def pictures_of(self, method: str) -> Iterator[Image.Image]:
        """The pictures of one method, its training included where that is not done."""
        makers: dict[str, Callable[[], Iterator[Image.Image]]] = {
            "constant": lambda: pictures.constant_pictures(self.scenes, self.pairs),
            "visible_gray": lambda: pictures.gray_pictures(self.scenes),
            "ip2p": lambda: pictures.ip2p_pictures(self.scenes, self._ip2p(), self.settings),
            report.OURS: lambda: pictures.our_pictures(self.scenes, self.pipe, self.settings),
        }
        if method in makers:
            return makers[method]()
        return pictures.network_pictures(self.scenes, self._network(method), self.device)

    def _network(self, method: str) -> torch.nn.Module:
        folder = self.folder / "trainings" / method
        if not (folder / "result").is_dir():
            self._need(method, folder, "minutes")
            config = TrainingConfig(Budget(minutes=self.options.minutes))
            train(LEARNERS[method](self.device), self.pairs, folder, config, self.device)
        check_finished(folder, self.pairs, self.options.minutes)
        record = finished(folder)
        seen = set(record["settings"]["examples"]) & {scene.example.id for scene in self.scenes}
        if seen:
            raise TrainingError(f"{folder} was trained on {len(seen)} of the scenes, {sorted(seen)[0]} among them")
        return load_weights(folder, NETWORKS[method](**record["options"]))

    def _ip2p(self) -> DiffV2IRPipeline:
        folder, options = self.folder / "trainings" / "ip2p", self.options
        if not (folder / "result").is_dir():
            self._need("ip2p", folder, "start")
            share = 1.0 if options.share is None else options.share
            ip2p.train_ip2p(options.data, options.start, self.pipe.folder, folder, share, teacher=options.teacher)
        ip2p.check_training(folder, ip2p.training_examples(options.data), options.share)
        asked = argparse.Namespace(**{**vars(self.options), "bundle": str(folder / "result")})
        return load_pipeline(asked)

    def training_of(self, method: str) -> dict[str, Any] | None:
        """What the training of a method took; None of those that have none, or do not say."""
        folder = self.folder / "trainings" / method
        if method == "ip2p":
            return ip2p.training_record(folder)
        return training_record(folder) if method in LEARNERS else None

    def _need(self, method: str, folder: Path, option: str) -> None:
        if getattr(self.options, option) is None:
            raise CommandError(
                f"{folder} holds no finished training: give --{option} to train it here, train it with "
                f"python -m benchmarks.baselines.{method} --run {folder}, or leave it out with --methods"
            )


def run(options: argparse.Namespace) -> None:
    """Make, score and write everything that `options` ask for."""
    comparison, views = Comparison(options), distance_views(options.fid, options.device)
    made = {}
    for method in options.methods:
        logger.info("pictures of %s", method)
        made[method] = pictures.save_pictures(comparison.scenes, comparison.pictures_of(method), options.run / method)
    scores, real = report.score_pictures(comparison.scenes, made, views)
    table = report.to_markdown(scores, real) + f"\nFréchet: {FRECHET_NAME}, not comparable with FID.\n"
    (options.run / "table.md").write_text(table, encoding="utf-8")
    (options.run / "table.csv").write_text(report.to_csv(scores), encoding="utf-8")
    trainings = {method: took for method in made if (took := comparison.training_of(method))}
    record = {
        "split": options.split,
        "bundle": options.bundle,
        "bundle_sha256": comparison.pipe.bundle_sha256,
        "settings": comparison.settings.to_dict(),
        "protocol": PROTOCOL,
        "trainings": trainings,
        "methods": report.to_json(scores),
        "real": {camera: value.to_dict() for camera, value in real.items()},
        "pictures": picture_hashes(report.as_translations(comparison.scenes)),
    }
    text = json.dumps(record, indent=2, allow_nan=False)
    (options.run / "scores.json").write_text(text + "\n", encoding="utf-8")
    places = report.choose_scenes(comparison.scenes, options.sheet_scenes, options.sheet_seed)
    report.draw_sheet(comparison.scenes, made, places).save(options.run / "sheet.jpg", quality=90)
    print(table)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--data", type=Path, required=True, help="dataset folder")
    result.add_argument("--run", type=Path, required=True, metavar="DIR", help="folder of trainings and results")
    result.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    result.add_argument("--split", default="test", help="which pairs are scored (default: test)")
    result.add_argument("--limit", type=int, metavar="N", help="score N pairs, evenly spread")
    result.add_argument("--minutes", type=float, help="training time of regression and pix2pix each, where not done")
    result.add_argument("--start", type=Path, help="result of phase 1, to train ip2p from where it is not done")
    result.add_argument("--teacher", type=Path, help="output of train.teacher, to train ip2p with as ours was")
    result.add_argument(
        "--share", type=float, help="part of the steps and views of phase2.yaml for ip2p, where not done (default: 1)"
    )
    result.add_argument("--sheet-scenes", type=int, default=14, metavar="N", help="rows of the sheet (default: 14)")
    result.add_argument("--sheet-seed", type=int, default=0, metavar="N", help="draws the scenes of the sheet")
    result.add_argument("--fid", action="store_true", help="also FID, KID and LPIPS, see python -m diffv2ir evaluate")
    result.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    add_model_arguments(result)
    result.set_defaults(dtype="fp32")  # the same figures on every device
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 after one line about what the user can mend."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        run(options)
    except (CommandError, DataError, TrainingError, ValueError, OSError) as error:
        print(f"benchmarks/compare.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
