"""Annotate all shards of a folder: in this process, in several, or on a cluster through Ray Data.

All three hand whole shards to `annotate_shard`, so on the same kind of device their results are the same, byte by byte.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

from diffv2ir.data.annotate import Annotator, annotate_shard, is_done, model_name, progress
from diffv2ir.data.examples import DataError
from diffv2ir.data.shards import COLUMNS, MANIFEST, read_table

logger = logging.getLogger(__name__)

ENGINES = ("local", "ray")
RETRIES = 2
# What `Annotator` imports.
_BLIP = "transformers.models.blip"
_OF_WORKERS = (f"{_BLIP}.modeling_blip", f"{_BLIP}.processing_blip", "diffv2ir.vlum.caption", "diffv2ir.vlum.segment")
REPORT_EVERY = 30.0  # seconds, also while no shard gets done

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
    return _follow(run(folder, bundle, pending, workers), _Status(folder, {shard: images[shard] for shard in pending}))


class _Status:
    """What is done and how long the rest takes, also of shards that are in work."""

    def __init__(self, folder: Path, images: dict[str, int]):
        self.folder, self.images = folder, images
        self.started = time.monotonic()
        self.before = {shard: progress(folder, shard)[0] for shard in images}
        self.passed: set[str] = set()
        self.made = 0
        self._lock = threading.Lock()

    def pass_shard(self, shard: str, made: int) -> None:
        with self._lock:
            self.passed.add(shard)
            self.made += made

    def report(self) -> None:
        """Print it; from several threads, no shard counts twice and no line comes after a newer one."""
        with self._lock:
            print(self, flush=True)

    def __str__(self) -> str:
        waiting = self.images.keys() - self.passed
        now = {shard: progress(self.folder, shard) for shard in waiting}
        in_work = sum(now[shard][1] for shard in waiting if now[shard][0] != self.before[shard])
        made, left = self.made + in_work, sum(self.images[shard] for shard in waiting) - in_work
        speed = made / max(1e-9, time.monotonic() - self.started)
        duration = timedelta(seconds=round(left / speed)) if speed else "unknown"
        return f"{len(self.passed)}/{len(self.images)} shards, {made:,} images, {speed:.2f} images/s, {duration} left"


@contextmanager
def _every(seconds: float, report: Callable[[], None]) -> Iterator[None]:
    """Calls `report` from another thread, time and again, while it lasts."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            report()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _follow(results: Iterator[Result], status: _Status) -> int:
    """Print speed and time left after every shard, and meanwhile; returns the images made."""
    failed, taken = [], 0
    with closing(results), _every(REPORT_EVERY, status.report):
        for shard, count, error in results:
            status.pass_shard(shard, count or 0)
            taken += count is None and not error
            if error:
                failed.append(f"{shard}: {error}")
            status.report()
    if failed:
        raise DataError(f"{len(failed)} shard(s) failed; start again to retry them:\n  " + "\n  ".join(failed))
    if taken:
        print(f"{taken} shard(s) are left to another job, which is at them now", flush=True)
    return status.made


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
    """A worker that is killed takes the others with it: new ones go on with what is left.

    Which shard it was is not known, so every one in work counts as tried; a shard's last try is alone.
    """
    left, tries, in_vain = list(shards), Counter(), 0
    while left:
        turn = [shard for shard in left if tries[shard] < RETRIES] or left[:1]
        before = {shard: progress(folder, shard)[0] for shard in turn}
        undone = set(turn)
        for result in _pool(folder, bundle, turn, min(workers, len(turn))):
            undone.remove(result[0])
            left.remove(result[0])
            yield result
        if not undone:
            continue
        # A shard that was finished just then is done, though its result was lost with the others.
        model = model_name(bundle)
        for shard in [shard for shard in turn if shard in undone and is_done(folder, shard, model)]:
            undone.remove(shard)
            left.remove(shard)
            yield shard, progress(folder, shard)[1], ""
        logger.warning("a worker was killed, perhaps for want of memory; %d shards are left", len(left))
        killed = [shard for shard in turn if shard in undone and progress(folder, shard)[0] != before[shard]]
        in_vain += not killed
        if in_vain > RETRIES:
            raise DataError("workers die before they annotate anything: see the errors above, or they want memory")
        for shard in killed:
            tries[shard] += 1
            if tries[shard] > RETRIES:
                left.remove(shard)
                yield shard, None, f"its worker was killed {tries[shard]} times, perhaps for want of memory"


def _pool(folder: Path, bundle: Path, shards: Sequence[str], workers: int) -> Iterator[Result]:
    """The results of as many processes, as they come, until one of them is killed.

    Whoever stops listening, as Ctrl-C does, ends the processes with the shards that they are at.
    """
    # CUDA does not survive a fork of this process; the server's has none, and has imported what takes seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *_OF_WORKERS])
    numbers, others = context.Value("i", 0), set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, context, _start_worker, (bundle, numbers, workers)) as pool:
        try:
            for future in as_completed([pool.submit(_work, folder, shard) for shard in shards]):
                if not isinstance(future.exception(), BrokenProcessPool):
                    yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


_annotator: Annotator  # of a worker process


def _start_worker(bundle: Path, numbers, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own lock among processes would be left behind by one that is ended
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
        raise DataError(f'engine "ray" needs Ray Data ({error}): pip install "ray[data]>=2.40,<2.64"') from error
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
