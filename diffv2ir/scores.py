"""The numbers of finished translations: every measure, for every image, camera and method, with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageStat
from torch import Tensor
from tqdm import tqdm

from diffv2ir.bootstrap import mean_interval, set_interval
from diffv2ir.efficientnet import EfficientNetView, has_frechet_weights
from diffv2ir.imaging import content_hash
from diffv2ir.measures import MEASURES
from diffv2ir.metrics import discrepancy, frechet_distance, kernel_distance, kernels, psnr, ssim
from diffv2ir.rows import text_rows
from diffv2ir.settings import GenerationSettings
from diffv2ir.tasks import edge_f1, edges, person_measures, person_regions

if TYPE_CHECKING:
    from diffv2ir.evaluate import Translation

OVERALL = "all"
EVALUATION_SIZE = 256
PROTOCOL = f"central square, {EVALUATION_SIZE} px, 8-bit gray; settings.seed is combined with each example's id"
_BATCH = 16
_PATIENCE = 5.0  # seconds until a progress bar is shown
# What the real infrared is scored by: how it relates to the visible image, so that the others' numbers can be read.
_OF_REAL = ("edge_f1_visible", "person_contrast", "person_brighter")

Rows = dict[str, list[float]]
"""Measure -> one value an image; NaN where it is not defined for an image."""


class View(Protocol):
    """A network that looks at pictures; `frechet`, `kernel` and `perceptual` name the distances in what it sees."""

    frechet: str
    kernel: str
    perceptual: str

    def see(self, images: Sequence[Image.Image]) -> tuple[Tensor, Any]: ...

    def distances(self, one: Any, other: Any) -> Tensor: ...


def distance_views(fid: bool = False, device: str | None = None) -> list[View]:
    """The networks of the distances: EfficientNet-Lite0, where its weights are installed, and with `fid` those of FID.

    Raises:
        ValueError: those of FID cannot be had; says where they are looked for and where they are published.
    """
    from diffv2ir.inception import InceptionView, WeightsMissing

    views: list[View] = [EfficientNetView()] if has_frechet_weights() else []
    if fid:
        try:
            views.append(InceptionView(device))
        except (ModuleNotFoundError, WeightsMissing) as error:
            raise ValueError(str(error)) from error
    return views


@dataclass(frozen=True)
class Score:
    """Means over `count` images, distances between sets of them, and the 95 % bootstrap interval of each.

    None stands for what is not defined: no weights, fewer than two images in a set, no people. The person measures are
    means over `people` images.
    """

    count: int
    people: int
    values: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        values = {name: _finite(value) for name, value in self.values.items()}
        intervals = {f"{name}_interval": [_finite(end) for end in ends] for name, ends in self.intervals.items()}
        return {"count": self.count, "people": self.people, **values, **intervals}

    @property
    def psnr(self) -> float:
        return self.values["psnr"]

    @property
    def ssim(self) -> float:
        return self.values["ssim"]

    @property
    def frechet_efficientnet_lite0(self) -> float | None:
        return self.values["frechet_efficientnet_lite0"]

    @property
    def psnr_interval(self) -> tuple[float, float]:
        return self.intervals["psnr"]

    @property
    def ssim_interval(self) -> tuple[float, float]:
        return self.intervals["ssim"]

    def cell(self, name: str) -> str:
        """A value and its interval as text."""
        value = MEASURES[name].format(self.values.get(name))
        if name not in self.intervals:
            return value
        low, high = (MEASURES[name].format(end) for end in self.intervals[name])
        return f"{value} ({low} to {high})"


@dataclass(frozen=True)
class Report:
    """Scores by camera (`OVERALL` for all together) of the model, the visible image turned gray, and a constant.

    `real` has those measures of the real infrared that relate it to the visible image. `images` has the model's
    measures of every pair, by example id, for comparisons of two methods, and `baseline_images` those of the other two.
    `pictures` has a hash of every real picture, by which such a comparison knows that both are of the same.
    """

    protocol: str
    settings: GenerationSettings | None
    model: dict[str, Score]
    visible_gray: dict[str, Score]
    constant: dict[str, Score]
    real: dict[str, Score]
    images: dict[str, dict[str, Any]]
    baseline_images: dict[str, dict[str, dict[str, Any]]]
    pictures: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        groups = {**self.methods(), "real": self.real}
        scores = {name: {camera: score.to_dict() for camera, score in group.items()} for name, group in groups.items()}
        settings = None if self.settings is None else self.settings.to_dict()
        images = {"images": self.images, "baseline_images": self.baseline_images}
        return {"protocol": self.protocol, "settings": settings, **scores, **images, "pictures": self.pictures}

    def methods(self) -> dict[str, dict[str, Score]]:
        return {"model": self.model, "visible_gray": self.visible_gray, "constant": self.constant}

    def table(self) -> str:
        """The scores as aligned text: pictures and sets, the networks' distances of the literature if any, tasks."""
        names = ["psnr", "ssim", *(getattr(EfficientNetView, name) for name in ("frechet", "kernel", "perceptual"))]
        parts = [_table(self.methods(), names)]
        if "fid" in self.model[OVERALL].values:
            parts.append(_table(self.methods(), ["fid", "kid", "lpips"]))
        tasks = {"real": self.real, **self.methods()}
        parts.append(_table(tasks, ["edge_f1", "edge_f1_visible"]))
        if self.real[OVERALL].people:
            people = ["person_contrast", "person_brighter", "person_sign", "person_error"]
            parts.append(_table(tasks, people, people=True))
        note = "In brackets: 95 %. Fréchet, kernel, perceptual: on EfficientNet-Lite0, not comparable with FID"
        return "\n\n".join([*parts, note])


def score(
    translations: Sequence[Translation],
    settings: GenerationSettings | None,
    views: Sequence[View] | None = None,
) -> Report:
    """Score finished translations, per camera and overall.

    Args:
        views: networks for distances between features; EfficientNet-Lite0, where its weights are installed, if None.
    """
    ids, cameras = [t.example.id for t in translations], [t.example.source for t in translations]
    methods = {
        "model": [translation.infrared for translation in translations],
        "visible_gray": [translation.visible.convert("L") for translation in translations],
        "constant": _constants([translation.real for translation in translations], cameras),
    }
    # A set of equal images has no distribution to compare.
    scores, rows = score_methods(methods, translations, views, without_distances=("constant",))
    kept = {name: _images(rows[name], ids, cameras) for name in methods}
    return Report(
        PROTOCOL, settings, **scores, real=score_real(rows, translations), images=kept.pop("model"),
        baseline_images=kept, pictures=picture_hashes(translations),
    )  # fmt: skip


def picture_hashes(translations: Sequence[Translation]) -> dict[str, str]:
    """A hash of each real picture as it is compared with, cut and resized, by example id."""
    return {translation.example.id: content_hash(translation.real) for translation in translations}


def score_methods(
    methods: Mapping[str, Sequence[Image.Image]],
    translations: Sequence[Translation],
    views: Sequence[View] | None = None,
    without_distances: Collection[str] = (),
) -> tuple[dict[str, dict[str, Score]], dict[str, Rows]]:
    """Score any number of methods on the same pairs; what does not depend on the method is worked out once.

    Args:
        methods: name -> pictures, 8-bit gray, in the order of `translations`, whose own pictures are not looked at.
        views: see `score`. without_distances: methods that get no distances between sets of images.

    Returns:
        Method -> camera -> score, and the values of every image: those of the methods and of "real".
    """
    if views is None:
        views = distance_views()
    rows = _rows(methods, translations)
    features = _look(views, methods, [translation.real for translation in translations], rows, without_distances)
    cameras = [translation.example.source for translation in translations]
    return {name: _scores(rows[name], features[name], cameras) for name in methods}, rows


def score_real(rows: Mapping[str, Rows], translations: Sequence[Translation]) -> dict[str, Score]:
    """Camera -> those measures of the real infrared that relate it to the visible image.

    Args:
        rows: the values of every image that `score_methods` gave for these translations.
    """
    own = {name: rows["real"][name] for name in _OF_REAL}
    return _scores(own, {}, [translation.example.source for translation in translations])


def _rows(methods: Mapping[str, Sequence[Image.Image]], translations: Sequence[Translation]) -> dict[str, Rows]:
    """What needs no network, of each method and of the real images."""
    real = [translation.real for translation in translations]
    visible = [edges(translation.visible) for translation in translations]
    wanted = [edges(image) for image in real]
    people = [person_regions(t.real, t.example.kind, t.example.caption) for t in translations]
    result = {}
    every = {**methods, "real": real}
    for name, images in tqdm(every.items(), desc="measuring", unit="method", delay=_PATIENCE, leave=False):
        found = [edges(image) for image in images]
        rows = {
            "psnr": [psnr(*pair) for pair in zip(images, real, strict=True)],
            "ssim": [ssim(*pair) for pair in zip(images, real, strict=True)],
            "edge_f1": [edge_f1(*pair) for pair in zip(found, wanted, strict=True)],
            "edge_f1_visible": [edge_f1(*pair) for pair in zip(found, visible, strict=True)],
        }
        persons = [person_measures(*triple) for triple in zip(images, real, people, strict=True)]
        result[name] = rows | {key: [person[key] for person in persons] for key in persons[0]}
    return result


def _look(
    views: Sequence[View],
    methods: Mapping[str, Sequence[Image.Image]],
    real: list[Image.Image],
    rows: dict[str, Rows],
    without_distances: Collection[str],
) -> dict[str, dict[str, tuple[Tensor, Tensor] | None]]:
    """Adds perceptual distances to `rows`; returns method -> name of a distance -> features of its and the real images.

    There are None for the methods `without_distances`.
    """
    empty = dict.fromkeys((EfficientNetView.frechet, EfficientNetView.kernel))
    result: dict[str, dict[str, Any]] = {name: dict(empty) for name in methods}
    for name in methods:
        rows[name][EfficientNetView.perceptual] = [math.nan] * len(real)
    for view in views:
        distances: dict[str, list[float]] = {name: [] for name in methods}
        seen: dict[str, list[Tensor]] = {name: [] for name in (*methods, "real")}
        for start in tqdm(range(0, len(real), _BATCH), desc="comparing", unit="batch", delay=_PATIENCE, leave=False):
            features, wanted = view.see(real[start : start + _BATCH])
            seen["real"].append(features)
            for name, images in methods.items():
                features, looks = view.see(images[start : start + _BATCH])
                seen[name].append(features)
                distances[name] += view.distances(looks, wanted).tolist()
        pooled = {name: torch.cat(batches).double() for name, batches in seen.items()}
        for name in methods:
            rows[name][view.perceptual] = distances[name]
            sets = None if name in without_distances else (pooled[name], pooled["real"])
            result[name] |= {view.frechet: sets, view.kernel: sets}
    return result


def _constants(real: Sequence[Image.Image], cameras: Sequence[str]) -> list[Image.Image]:
    """For each image a plain one at the mean level of its camera's real images."""
    levels = [ImageStat.Stat(image).mean[0] for image in real]
    means = {
        camera: round(statistics.fmean(level for level, own in zip(levels, cameras, strict=True) if own == camera))
        for camera in set(cameras)
    }
    return [Image.new("L", image.size, means[camera]) for image, camera in zip(real, cameras, strict=True)]


def _scores(rows: Rows, features: Mapping[str, Any], cameras: Sequence[str]) -> dict[str, Score]:
    """Camera -> score, and `OVERALL`; that of a single camera is both."""
    names = sorted(set(cameras))
    result = {}
    for camera in names:
        result[camera] = _score_of(rows, features, [row for row, own in enumerate(cameras) if own == camera])
    every = list(range(len(cameras)))
    result[OVERALL] = result[names[0]] if len(names) == 1 else _score_of(rows, features, every)
    return result


def _score_of(rows: Rows, features: Mapping[str, Any], own: list[int]) -> Score:
    """The score of the images at the rows `own`."""
    values: dict[str, float | None] = {}
    intervals = {}
    for name, column in rows.items():
        defined = [column[index] for index in own if not math.isnan(column[index])]
        values[name] = statistics.fmean(defined) if defined else None
        if defined:
            intervals[name] = mean_interval(defined)
    for name, sets in features.items():
        values[name] = None
        if sets is not None and len(own) > 1:
            values[name], intervals[name] = _DISTANCES[name](sets[0][own], sets[1][own])
    people = sum(not math.isnan(rows["person_contrast"][index]) for index in own)
    return Score(len(own), people, values, intervals)


def _frechet(features: Tensor, real: Tensor) -> tuple[float, tuple[float, float]]:
    value = frechet_distance(features, real)
    what = f"interval of the Fréchet distance, {len(real)} images"
    with tqdm(desc=what, unit="resample", delay=_PATIENCE, leave=False) as bar:

        def resampled(rows: np.ndarray) -> float:
            bar.update()
            return frechet_distance(features[rows], real[rows])

        low, high = set_interval(resampled, len(real), value)
    return value, (max(0.0, low), high)


def _kernel(features: Tensor, real: Tensor) -> tuple[float, tuple[float, float]]:
    table = kernels(features, real)

    def resampled(rows: np.ndarray) -> float:
        times = np.bincount(rows, minlength=len(real)).astype(float)
        return discrepancy(table, times, times)

    value = kernel_distance(features, real)
    return value, set_interval(resampled, len(real), value)


_DISTANCES = {EfficientNetView.frechet: _frechet, "fid": _frechet, EfficientNetView.kernel: _kernel, "kid": _kernel}


def _images(rows: Rows, ids: Sequence[str], cameras: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        key: {"source": cameras[row], **{name: _finite(values[row]) for name, values in rows.items()}}
        for row, key in enumerate(ids)
    }


def _finite(value: float | None) -> float | None:
    """The value for JSON, which knows no infinity (equal images have an infinite PSNR) and no NaN."""
    return value if value is None or math.isfinite(value) else None


def _table(methods: Mapping[str, Mapping[str, Score]], names: Sequence[str], people: bool = False) -> str:
    """One line for each camera and method: how many images (with people), and each measure with its interval."""
    lines = [["camera", "people" if people else "images", "method", *(MEASURES[name].title for name in names)]]
    for camera in next(iter(methods.values())):
        for method, group in methods.items():
            score = group[camera]
            count = score.people if people else score.count
            if count:
                lines.append([camera, str(count), method, *(score.cell(name) for name in names)])
    return text_rows(lines)
