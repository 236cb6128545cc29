"""Images per second and memory of training steps of phase 2, next to diffusers' example loop, with random weights.

`python benchmarks/training.py` prints a table in Markdown; `--json FILE` writes its figures. Both sides run in this one
process, one after the other, from the same weights, with the same batches, noise and settings; so their losses must be
the same. Our side reads cached latents from disk and caches texts, as a training does; filling the caches is not timed.
There are few of both: no file is read from a slow disk, and no text is encoded in a timed step.
`--config train/configs/sd15/12gb/phase2.yaml` takes the settings of a training; the example loop, which has no such
setting, keeps its average on the device in any case.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":  # as a file, Python looks for modules beside it and not in the repository
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.flops import forward_flops, meta_unet
from benchmarks.inference import device_name
from benchmarks.plain_training import PlainTraining
from benchmarks.random_bundle import SCHEDULE, clip_tokenizer
from diffv2ir.guidance import synchronize
from diffv2ir.memory import DTYPES
from diffv2ir.pipeline import latent_stride
from diffv2ir.training.cache import encode_mode
from diffv2ir.training.config import load_config
from diffv2ir.training.diffusion import DiffusionObjective, NoiseConfig, PromptEncoder
from diffv2ir.training.loop import OPTIMIZERS, Draw, Loop, LoopConfig, Sampler, process_state
from diffv2ir.training.phases import PhaseConfig
from diffv2ir.training.shapes import SHAPES

ROLES = ("infrared", "visible", "segmentation")
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WARM_UP_STEPS = 2
_BATCHES = 2  # as many as there are different pictures


@dataclass
class Run:
    """One side: losses of all its steps, those of the warm-up first; seconds of those that are timed."""

    losses: list[float]
    seconds: list[float]
    peak_bytes: int | None


class Bench:
    """What both sides share: frozen models, pictures, captions, and the order of the draws."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.device = options, folder, process_state().device
        self.shape, dtype = SHAPES[options.random], getattr(torch, DTYPES[options.frozen_dtype])
        self.config = LoopConfig(
            steps=WARM_UP_STEPS + options.steps, batch_size=options.batch, micro_batch_size=options.micro_batch,
            warmup_steps=1, schedule="constant", optimizer=options.optimizer, ema_device=options.ema_device,
            mixed_precision=options.mixed_precision,
        )  # fmt: skip
        torch.manual_seed(1)
        with torch.device(self.device):
            self.vae = AutoencoderKL(**self.shape["vae"]).to(dtype).eval().requires_grad_(False)
            text_config = CLIPTextConfig(**self.shape["text_encoder"])
            self.text_encoder = CLIPTextModel(text_config).to(dtype).eval().requires_grad_(False)
        self.tokenizer = clip_tokenizer(folder)
        self.scheduler = DDPMScheduler(**SCHEDULE)
        count, size = _BATCHES * options.batch, options.size
        pictures = torch.rand(3, count, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1
        self.pictures = dict(zip(ROLES, pictures, strict=True))
        self.captions = [f"an infrared image of scene {number}" for number in range(count)]
        self.sampler = Sampler(count, self.config.seed)

    def unet(self) -> UNet2DConditionModel:
        """The UNet that both sides start from."""
        torch.manual_seed(0)
        with torch.device(self.device):
            unet = UNet2DConditionModel(**self.shape["unet"]).train()
        if self.options.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        return unet

    def ours(self) -> Callable[[], float]:
        """A step as `train.phase2` does it."""
        for number in range(len(self.captions)):
            save_file(self._latents(number), self.folder / f"{number}.safetensors")
        self.vae.to("cpu")
        prompts = PromptEncoder(self.tokenizer, self.text_encoder)
        factor = self.vae.config.scaling_factor
        objective = DiffusionObjective(self.scheduler, prompts, factor, NoiseConfig())

        def loss(model: nn.Module, draws: list[Draw]) -> dict[str, Tensor]:
            latents = [load_file(self.folder / f"{draw.index}.safetensors") for draw in draws]
            targets = torch.stack([views["infrared"] for views in latents]).float()
            conditions = torch.stack([torch.cat([views["visible"], views["segmentation"]]) for views in latents])
            return objective(model, draws, targets, [self.captions[draw.index] for draw in draws], conditions.float())

        unet = self.unet().to(memory_format=torch.channels_last)
        loop = Loop(self.config, self.folder / "run", unet, loss, len(self.captions))

        def step() -> float:
            value = loop._optimizer_step()["loss"]
            loop.step += 1
            return value

        return step

    def plain(self) -> Callable[[], float]:
        """A step as diffusers' example does it."""
        vae = self.vae.to(self.device)
        training = PlainTraining(self.config, self.unet(), vae, self.text_encoder, self.scheduler)
        options = dict(padding="max_length", truncation=True, return_tensors="pt")
        tokens = self.tokenizer(self.captions, max_length=self.tokenizer.model_max_length, **options).input_ids
        steps, (share, micro) = iter(range(self.config.steps)), self.config.share(processes=1)

        def step() -> float:
            draws = self.sampler.draws(next(steps), share)
            losses = []
            for part in (draws[start : start + micro] for start in range(0, share, micro)):
                chosen = [draw.index for draw in part]
                batch = {role: pictures[chosen] for role, pictures in self.pictures.items()}
                losses.append(training.step({**batch, "tokens": tokens[chosen]}, part))
            return fmean(losses)

        return step

    def _latents(self, number: int) -> dict[str, Tensor]:
        images = torch.stack([self.pictures[role][number] for role in ROLES]).to(self.device, self.vae.dtype)
        with torch.no_grad():
            latents = encode_mode(self.vae, images).half().cpu()  # [3, 4, h, w]
        return {role: latent.contiguous() for role, latent in zip(ROLES, latents, strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(build_parser(), arguments)
    report = compare(options)
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/training.py", description=__doc__)
    parser.add_argument("--random", choices=tuple(SHAPES), default="sd15", help="shape of the models (default: sd15)")
    parser.add_argument("--config", metavar="FILE", help="of a training of phase 2 or 3: defaults for what follows")
    parser.add_argument("--size", type=int, default=256, help="of the pictures, in pixels (default: 256)")
    parser.add_argument("--batch", type=int, default=32, help="pictures in a step (default: 32)")
    parser.add_argument("--micro-batch", type=int, help="pictures in a forward pass (default: all of them)")
    parser.add_argument("--steps", type=int, default=10, help="that are timed, after 2 others (default: 10)")
    parser.add_argument("--mixed-precision", choices=tuple(PRECISIONS), default="fp16", help="default: fp16")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="default: adamw")
    parser.add_argument("--ema-device", choices=("model", "cpu"), default="model", help="default: model")
    parser.add_argument("--frozen-dtype", choices=tuple(DTYPES), help="of what is not trained (default: as computed)")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options: as given, else those of `--config`, else the defaults."""
    options = parser.parse_args(arguments)
    if options.config:
        try:
            parser.set_defaults(**options_of(load_config(options.config, PhaseConfig)))
        except (OSError, ValueError) as error:
            parser.error(f"--config: {error}")
        options = parser.parse_args(arguments)
    computed = str(PRECISIONS[options.mixed_precision]).removeprefix("torch.")
    options.frozen_dtype = options.frozen_dtype or next(short for short, name in DTYPES.items() if name == computed)
    return options


def options_of(config: PhaseConfig) -> dict[str, Any]:
    """What a training's configuration says of the options here.

    Raises:
        ValueError: it trains an adapter, or not with photo and map.
    """
    if config.phase not in ("2", "3") or config.lora:
        raise ValueError("what is measured is a training of all weights, of phase 2 or 3")
    loop = config.loop
    return {
        "size": config.view.crop,
        "batch": loop.batch_size,
        "micro_batch": loop.micro_batch_size,
        "mixed_precision": loop.mixed_precision,
        "optimizer": loop.optimizer,
        "ema_device": loop.ema_device,
        "frozen_dtype": config.frozen_dtype,
        "gradient_checkpointing": config.gradient_checkpointing,
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides, and the device's matrix rate in between; see `table` for what is told."""
    with TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        rate = matrix_rate(bench.device, PRECISIONS[options.mixed_precision])
        runs = {}
        for name in ("ours", "plain"):
            runs[name] = asdict(measure(getattr(bench, name)(), bench.device, options.steps))
            gc.collect()
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
        stride = latent_stride(bench.vae)
    forward = forward_flops(meta_unet(options.random), options.size // stride)
    return {
        "device": device_name(bench.device),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        **{name: value for name, value in vars(options).items() if name != "json"},
        "matrix_flops_per_second": rate,
        # Back to the weights and back to the input: each as much as forward. Checkpointing's second forward pass is
        # work that leads nowhere, and not counted.
        "flops_per_image": 3 * forward,
        **runs,
    }


def measure(step: Callable[[], float], device: torch.device, steps: int) -> Run:
    """Losses, seconds and peak memory (on a GPU) of some steps, after a warm-up."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    losses, seconds = [step() for _ in range(WARM_UP_STEPS)], []
    for _ in range(steps):
        synchronize(device)
        start = time.perf_counter()
        losses.append(step())
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return Run(losses, seconds, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


def matrix_rate(device: torch.device, dtype: torch.dtype, repetitions: int = 5) -> float:
    """Operations per second of the fastest of some products of large square matrices."""
    side = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    fastest = float("inf")
    for _ in range(repetitions):
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest


def table(report: dict[str, Any]) -> str:
    """The report in Markdown: images per second, share of the matrix rate, memory, losses."""
    sides = {"ours": report["ours"], "plain": report["plain"]}
    speeds = {name: report["batch"] * len(run["seconds"]) / sum(run["seconds"]) for name, run in sides.items()}
    shares = {
        name: speed * report["flops_per_image"] / report["matrix_flops_per_second"] for name, speed in speeds.items()
    }
    peaks = {
        name: "-" if run["peak_bytes"] is None else f"{run['peak_bytes'] / 1e9:.2f}" for name, run in sides.items()
    }
    pairs = list(zip(*(run["losses"] for run in sides.values()), strict=True))
    rows = {
        "images per second": {name: f"{speed:.2f}" for name, speed in speeds.items()},
        "share of the matrix rate": {name: f"{share:.1%}" for name, share in shares.items()},
        "peak GPU memory, GB": peaks,
        "loss of the first step": {name: f"{run['losses'][0]:.5f}" for name, run in sides.items()},
    }
    average = "on the CPU" if report["ema_device"] == "cpu" else "beside the model"
    return "\n".join(
        [
            f"{report['random']} on {report['device']}, mixed precision {report['mixed_precision']}, "
            f"{report['size']} px, batch {report['batch']} by {report['micro_batch'] or report['batch']}, "
            f"{report['optimizer']}, our average {average}, frozen models in {report['frozen_dtype']}, gradient "
            f"checkpointing {'on' if report['gradient_checkpointing'] else 'off'}, torch {report['torch']}, diffusers "
            f"{report['diffusers']}; matrix rate {report['matrix_flops_per_second'] / 1e12:.2f} TFLOP/s",
            "",
            "| training | ours | plain |",
            "| --- | ---: | ---: |",
            *(f"| {name} | {row['ours']} | {row['plain']} |" for name, row in rows.items()),
            "",
            f"Largest difference of the losses over {len(pairs)} steps: {max(abs(a - b) for a, b in pairs):.1e}.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
