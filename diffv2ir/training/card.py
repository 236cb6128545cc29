"""The model card of a bundle, from what the training and the evaluations left behind, and a template of words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

from diffv2ir.training.learnt import training_seconds

_STAGES_HEAD = "| stage | steps × batch | loss, first → last | minutes |"

STAGES = {
    "segmenter": "SAM (point prompts, merged regions as teacher)",
    "text": "tokenizer and CLIP text encoder",
    "captioner": "BLIP",
    "autoencoder": "AutoencoderTiny",
    "captioner/fold0": "BLIP that has not seen half of the scenes (not in the bundle)",
    "captioner/fold1": "BLIP that has not seen the other half (not in the bundle)",
    "teacher/member0": "first teacher of phase 2 (not in the bundle)",
    "teacher/member1": "second teacher of phase 2 (not in the bundle)",
    "base": "text-to-image base (visible photos)",
    "phase1": "phase 1, LoRA on infrared alone",
    "phase2": "phase 2, the teacher's pictures of views that are always new",
    "phase2-picture": "phase 2, the picture itself: `general`",
    "phase3-flir": "phase 3, LoRA: `flir`",
    "phase3-campus": "phase 3, LoRA: `campus`",
    "phase3-nir": "phase 3, LoRA: `nir`",
}


def stage_table(run: Path, before: str = "") -> str:
    """Steps, batch, mean loss over the first and the last log entry, and minutes of every stage, as Markdown.

    Of a stage that another machine ran, or an earlier run, there may be the weights alone: its row is then that of
    `before`, the table of the bundle that had these weights.
    """
    kept = {row.split(" | ")[0]: row for row in before.splitlines()}
    lines = [_STAGES_HEAD, "| --- | --- | --- | --- |"]
    for name, title in STAGES.items():
        if not (run / name / "history.json").is_file():
            lines.append(kept.get(f"| {title}", f"| {title} | no record was kept | | |"))
            continue
        loop, entries = _history(run / name)
        minutes = training_seconds(entries) / 60
        first, last = entries[0]["loss"], entries[-1]["loss"]
        work = f"{loop['steps']} × {loop['batch_size']}"
        lines.append(f"| {title} | {work} | {first:.3f} → {last:.3f} | {minutes:.0f} |")
    return "\n".join(lines)


def score_table(scores: Mapping[str, Any]) -> str:
    """PSNR, SSIM and Fréchet distance per camera of one evaluation, beside a constant and the gray visible image.

    Ours have their 95 % intervals.
    """
    lines = [
        "| camera | pairs | PSNR | SSIM | Fréchet | constant: PSNR | SSIM | gray: PSNR | SSIM | Fréchet |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for camera, ours in scores["model"].items():
        constant, gray = scores["constant"][camera], scores["visible_gray"][camera]
        cells = f"{_cells(ours, True)} | {constant['psnr']:.2f} | {constant['ssim']:.3f} | {_cells(gray)}"
        lines.append(f"| {camera} | {ours['count']} | {cells} |")
    return "\n".join(lines)


def style_table(general: Mapping[str, Any], styles: Mapping[str, Mapping[str, Any]]) -> str:
    """Each style on the one camera it was evaluated on, beside `general` on the same pairs, with their intervals."""
    lines = [
        "| style | camera | pairs | PSNR | SSIM | Fréchet | `general`: PSNR | SSIM | Fréchet |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for style, scores in styles.items():
        (camera,) = [name for name in scores["model"] if name != "all"]
        ours = scores["model"][camera]
        before = general["model"][camera]
        lines.append(f"| `{style}` | {camera} | {ours['count']} | {_cells(ours, True)} | {_cells(before, True)} |")
    return "\n".join(lines)


def size_table(bundle: Path) -> str:
    """Parameters and megabytes of every component's weights."""
    from safetensors import safe_open

    lines = ["| component | parameters | MB |", "| --- | --- | --- |"]
    total = 0
    for folder in sorted({path.parent for path in bundle.rglob("*.safetensors")}):
        count = size = 0
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as weights:
                count += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())
            size += path.stat().st_size
        total += size
        lines.append(f"| {folder.relative_to(bundle)} | {count / 1e6:.2f} M | {size / 1e6:.1f} |")
    return "\n".join([*lines, f"| all | | {total / 1e6:.1f} |"])


def draw_curves(run: Path, path: Path) -> None:
    """The loss of every stage over its steps, and the validation figures of phase 2's stages, as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    trained = [name for name in STAGES if (run / name / "history.json").is_file()]
    panels = [(name, "loss") for name in trained]
    panels += [
        (name, f"validation/{key}")
        for name in trained
        if name.startswith("phase2") and _history(run / name, only="validation/psnr")[1]
        for key in ("psnr", "ssim")
    ]
    rows = -(-len(panels) // 4)
    figure, axes = pyplot.subplots(rows, 4, figsize=(13, 2.5 * rows), layout="constrained", squeeze=False)
    for axis, (name, key) in zip(axes.flat, panels, strict=False):
        _, entries = _history(run / name, only=key)
        style = "-" if key == "loss" else "o-"
        axis.plot([entry["step"] for entry in entries], [entry[key] for entry in entries], style)
        axis.set_title(f"{name}: {key.replace('/', ' ')}", fontsize=9)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def write_card(
    template: Path, run: Path | None, bundle: Path, general: Path, styles: Mapping[str, Path], choice: Path
) -> Path:
    """Fill the `{placeholders}` of a template and draw the curves; returns the card, `bundle/README.md`.

    Args:
        run: output folder of `python -m train.tiny`; None where only settings or scores are new: the curves stay. Of
            stages that it has no record of, the card that is there has the rows.
        choice: Markdown that `python -m benchmarks.choose_defaults` printed.
        general, styles: JSON files that `python -m diffv2ir evaluate --json` wrote, a style's of its own camera only.

    Raises:
        ValueError: a file is missing, a style was evaluated on more than one camera, or there is neither a run nor a
            card with a table of stages.
    """
    scores = {name: _read(path) for name, path in {"general": general, **styles}.items()}
    for style in styles:
        if len(scores[style]["model"]) != 2:
            raise ValueError(f"{styles[style]}: expected the scores of one camera, got {list(scores[style]['model'])}")
    tables = {
        "stages": _stages(run, bundle / "README.md"),
        "sizes": size_table(bundle),
        "scores": score_table(scores["general"]),
        "styles": style_table(scores["general"], {style: scores[style] for style in styles}),
        "choice": _read_text(choice).strip(),
        "settings": json.dumps(scores["general"]["settings"]),
    }
    text = template.read_text(encoding="utf-8")
    for name, value in tables.items():
        if f"{{{name}}}" not in text:
            raise ValueError(f"{template} has no place {{{name}}}")
        text = text.replace(f"{{{name}}}", value)
    if run:
        draw_curves(run, bundle / "curves.png")
    (bundle / "README.md").write_text(text, encoding="utf-8")
    return bundle / "README.md"


def _stages(run: Path | None, card: Path) -> str:
    """The table of stages of a run and the card that is there, or of that alone."""
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    before = list(takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: line != _STAGES_HEAD, lines)))
    if run:
        return stage_table(run, "\n".join(before))
    if not before:
        raise ValueError(f"{card} has no table of stages: name the run folder of the training")
    return "\n".join(before)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(_read_text(path))


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    return path.read_text(encoding="utf-8")


def _history(stage: Path, only: str = "loss") -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Loop configuration, and the log entries that hold the value `only`."""
    stored = _read(stage / "history.json")
    config = stored["config"]
    return config.get("loop", config), [entry for entry in stored["history"] if only in entry]


def _cells(score: Mapping[str, Any], intervals: bool = False) -> str:
    frechet = score["frechet_efficientnet_lite0"]
    psnr, ssim = f"{score['psnr']:.2f}", f"{score['ssim']:.3f}"
    if intervals:
        psnr += " ({:.1f}–{:.1f})".format(*score["psnr_interval"])
        ssim += " ({:.2f}–{:.2f})".format(*score["ssim_interval"])
    distance = "–" if frechet is None else f"{frechet:.0f}"
    if intervals and frechet is not None:
        distance += " ({:.0f}–{:.0f})".format(*score["frechet_efficientnet_lite0_interval"])
    return f"{psnr} | {ssim} | {distance}"
