"""Annotate all shards of a folder: in this process, in several, or on a cluster through Ray Data.

All three hand whole shards to `annotate_shard`, so on the same kind of device their results are the same, byte by byte.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from pathlib import Path

from diffv2ir.data.annotate import Annotator, annotate_shard, is_done, model_name
from diffv2ir.data.examples import DataError
from diffv2ir.data.shards import COLUMNS, MANIFEST, read_table

logger = logging.getLogger(__name__)

ENGINES = ("local", "ray")
RETRIES = 2

Result = tuple[str, int | None, str]  # shard, images (None = taken by another job), what went wrong ("" = nothing)


def annotate(folder: Path, bundle: Path, workers: int = 1, engine: str = "local") -> int:
    """Caption and segment every visible image of a folder of shards; goes on where an earlier run was.

    Args:
        bundle: folder with captioner, captioner_processor and segmenter. workers: processes, or actors of Ray, each
            with a GPU of its own where there are GPUs. engine: one of `ENGINES`; with "ray", every machine has to see
            `folder` and `bundle` under these names.

    Returns:
        The images annotated by this run.

    Raises:
        DataError: `folder` has no shards, was annotated by another model, or shards failed `RETRIES` + 1 times.
    """
    if engine not in ENGINES or workers < 1:
        raise ValueError(f"engine must be one of {ENGINES} and workers at least 1, got {engine!r} and {workers}")
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} has no {MANIFEST}: make shards first, with `python -m train.data build`")
    folder, bundle = folder.resolve(), bundle.resolve()
    model = model_name(bundle)
    images = Counter()
    for row in read_table(folder / MANIFEST, COLUMNS):
        images[row["shard"]] += row["visible_name"] is not None
    pending = [shard for shard in sorted(images) if not is_done(folder, shard, model)]
    logger.info("%d of %d shards are to be annotated", len(pending), len(images))
    if not pending:
        return 0
    run = {"local": _local if workers > 1 else _here, "ray": _ray}[engine]
    return _follow(run(folder, bundle, pending, workers), images, len(pending), sum(images[s] for s in pending))


def _follow(results: Iterator[Result], images: Counter, shards: int, total: int) -> int:
    """Print speed and time left after every shard; returns the images made."""
    started, made, passed, failed, taken = time.monotonic(), 0, 0, [], 0
    for number, (shard, count, error) in enumerate(results, start=1):
        made, passed = made + (count or 0), passed + images[shard]
        taken += count is None and not error
        if error:
            failed.append(f"{shard}: {error}")
        speed = made / max(1e-9, time.monotonic() - started)
        left = timedelta(seconds=round((total - passed) / speed)) if speed else "unknown"
        print(f"{number}/{shards} shards, {made:,} images, {speed:.2f} images/s, {left} left", flush=True)
    if failed:
        raise DataError(f"{len(failed)} shard(s) failed; start again to retry them:\n  " + "\n  ".join(failed))
    if taken:
        logger.info("%d shard(s) are left to the job that is at them", taken)
    return made


def attempt(folder: Path, shard: str, annotator: Annotator) -> Result:
    """Annotate a shard, trying again when it fails; what went wrong the last time is returned, not raised."""
    for remaining in range(RETRIES, -1, -1):
        try:
            return shard, annotate_shard(folder, shard, annotator), ""
        except (ValueError, OSError, RuntimeError) as error:  # of data, disk and device
            logger.warning("%s: %s; %d more tries", shard, error, remaining)
            message = f"{type(error).__name__}: {error}"
    return shard, None, message


def _here(folder: Path, bundle: Path, shards: Sequence[str], workers: int) -> Iterator[Result]:
    annotator = Annotator(bundle, device(0))
    yield from (attempt(folder, shard, annotator) for shard in shards)


def device(number: int) -> str:
    """The device of worker `number`: GPUs in turn, else the CPU."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{number % count}" if count else "cpu"


def _local(folder: Path, bundle: Path, shards: Sequence[str], workers: int) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    numbers = context.Value("i", 0)
    with ProcessPoolExecutor(workers, context, _start_worker, (bundle, numbers, workers)) as pool:
        futures = [pool.submit(_work, folder, shard) for shard in shards]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError("a worker was killed, perhaps for want of memory; start again to go on") from error


_annotator: Annotator  # of a worker process


def _start_worker(bundle: Path, numbers, workers: int) -> None:
    import torch

    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    global _annotator
    _annotator = Annotator(bundle, device(number))


def _work(folder: Path, shard: str) -> Result:
    return attempt(folder, shard, _annotator)


class _Actor:
    """A worker of Ray Data: loads the models once, then takes batches of one shard."""

    def __init__(self, folder: str, bundle: str):
        self.folder, self.annotator = Path(folder), Annotator(Path(bundle), device(0))  # Ray hides the other GPUs

    def __call__(self, batch: dict) -> dict:
        results = [attempt(self.folder, str(shard), self.annotator) for shard in batch["shard"]]
        shards, counts, errors = zip(*results, strict=True)
        return {"shard": list(shards), "images": [-1 if c is None else c for c in counts], "error": list(errors)}


def _ray(folder: Path, bundle: Path, shards: Sequence[str], workers: int) -> Iterator[Result]:
    """One block a shard; an actor that dies is restarted, and its shard given out again."""
    try:
        import ray
    except ImportError as error:
        raise DataError(f'engine "ray" needs Ray Data ({error}): pip install "ray[data]>=2.40"') from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    done = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map_batches(
        _Actor,
        fn_constructor_args=(str(folder), str(bundle)),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards))),
        num_gpus=gpus,
        max_restarts=-1,
        max_task_retries=RETRIES,
    )
    for row in done.iter_rows():
        yield row["shard"], None if row["images"] < 0 else int(row["images"]), row["error"]
