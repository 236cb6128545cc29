"""Captions and maps over shards: resumable, the same by one worker or several, never two at one shard."""

import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from make_data import make_manifest_dataset

from diffv2ir.data import DataError, annotation_job, check_examples, read_examples
from diffv2ir.data import annotate as annotate_module
from diffv2ir.data.annotate import Annotator, annotate_shard, model_name
from diffv2ir.data.annotation_job import annotate
from diffv2ir.data.build import build
from diffv2ir.data.cleaning import CleaningConfig
from diffv2ir.data.shards import ANNOTATION_COLUMNS, read_table, write_table
from diffv2ir.imaging import open_image
from diffv2ir.vlum import caption_images, segmentation_map
from train.data import main

SHARDS = ("00000", "00001", "00002")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Three shards of two examples: 5 pairs, the first without a caption, and one infrared image."""
    root = tmp_path_factory.mktemp("plain")
    source = make_manifest_dataset(root / "source", pairs=5, infrared=1)
    build([("folder", source)], root / "data", CleaningConfig(8, skip=("duplicate", "misaligned")), shard_length=2)
    return root / "data"


@pytest.fixture
def data(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "data")


@pytest.fixture(scope="module")
def done(plain, bundle_folder, tmp_path_factory):
    """The shards annotated in this process."""
    folder = shutil.copytree(plain, tmp_path_factory.mktemp("done") / "data")
    assert annotate(folder, bundle_folder) == 5
    return folder


def annotations(folder):
    return {path.name: path.read_bytes() for path in (folder / "annotations").iterdir() if path.is_file()}


def test_examples_get_captions_and_maps(plain, done, pipe):
    before, after = ({e.id: e for e in read_examples(folder)} for folder in (plain, done))
    photo = open_image(after["scene0"].visible)
    assert before["scene0"].caption is None
    assert [after["scene0"].caption] == caption_images(pipe.captioner, pipe.captioner_processor, [photo])
    expected = segmentation_map(pipe.segmenter.masks(photo), photo.size, "regions")
    assert open_image(after["scene0"].segmentation).tobytes() == expected.convert("RGB").tobytes()
    assert after["scene1"].caption == before["scene1"].caption  # the data's own
    assert after["scene0"].map_style == "regions" and before["scene0"].map_style == after["scene5"].map_style == ""
    assert after["scene5"].segmentation is None and after["scene5"].visible is None
    check_examples(after.values())


def test_several_workers_make_the_same(data, done, bundle_folder, capsys):
    assert main(["annotate", str(data), "--bundle", str(bundle_folder), "--workers", "2"]) == 0
    assert annotations(data) == annotations(done)
    assert "3/3 shards, 5 images" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray Data is an optional extra")
def test_ray_makes_the_same(data, done, bundle_folder):
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        assert annotate(data, bundle_folder, workers=2, engine="ray") == 5
    finally:
        ray.shutdown()
    assert annotations(data) == annotations(done)


def test_without_ray_the_extra_is_named(data, bundle_folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install .*ray\[data\]"):
        annotate(data, bundle_folder, engine="ray")


def test_tables_of_earlier_versions_are_read_and_made_maps_are_not_taken_for_the_data_s_own(done, tmp_path):
    older = shutil.copytree(done, tmp_path / "older")
    for table in (older / "annotations").glob("*.parquet"):
        rows = read_table(table, ANNOTATION_COLUMNS)
        write_table(rows, {k: v for k, v in ANNOTATION_COLUMNS.items() if k != "map_style"}, table)
    assert {example.map_style for example in read_examples(older)} == {""}
    build([("folder", done)], tmp_path / "again", CleaningConfig(8, skip=("duplicate", "misaligned")))
    assert all(example.segmentation is None for example in read_examples(tmp_path / "again"))


class Killed(BaseException):
    pass


def test_a_killed_run_redoes_one_shard_at_most(data, done, bundle_folder, monkeypatch):
    seen = []
    original = Annotator.__call__

    def dying(self, images):
        seen.append(len(images))
        if len(seen) == 2:
            raise Killed
        yield from original(self, images)

    monkeypatch.setattr(Annotator, "__call__", dying)
    with pytest.raises(Killed):
        annotate(data, bundle_folder)
    finished = {name for name in annotations(data) if not name.startswith(".")}
    assert finished == {"00000.tar", "00000.parquet"}
    first = (data / "annotations" / "00000.tar").stat().st_mtime_ns
    monkeypatch.setattr(Annotator, "__call__", original)
    assert annotate(data, bundle_folder) == 3
    assert (data / "annotations" / "00000.tar").stat().st_mtime_ns == first
    assert annotations(data) == annotations(done)
    monkeypatch.setattr(annotation_job, "Annotator", None)  # nothing to do: no model is loaded
    assert annotate(data, bundle_folder) == 0


def test_death_between_map_and_table_leaves_the_shard_undone(data, done, bundle_folder, monkeypatch):
    original = annotate_module.write_table

    def dying(rows, columns, path):
        raise Killed

    monkeypatch.setattr(annotate_module, "write_table", dying)
    with pytest.raises(Killed):
        annotate(data, bundle_folder)
    monkeypatch.setattr(annotate_module, "write_table", original)
    assert all(example.segmentation is None for example in read_examples(data))
    assert annotate(data, bundle_folder) == 5
    assert annotations(data) == annotations(done)


def test_speed_is_told_while_a_shard_is_in_work(data, bundle_folder, monkeypatch):
    original, as_text, lines = Annotator.__call__, annotation_job._Status.__str__, []

    def told(self):
        lines.append(as_text(self))
        return lines[-1]

    def wait_for(start):
        deadline = time.monotonic() + 120
        while not any(line.startswith(start) for line in lines):
            assert time.monotonic() < deadline, f"{start} is not among {set(lines)}"
            time.sleep(0.01)

    def waiting(self, images):
        wait_for("0/3 shards, 0 images, 0.00 images/s, unknown left")
        for made in original(self, images):
            yield made
            wait_for("0/3 shards, 1 images, ")

    monkeypatch.setattr(Annotator, "__call__", waiting)
    monkeypatch.setattr(annotation_job._Status, "__str__", told)
    monkeypatch.setattr(annotation_job, "REPORT_EVERY", 0.02)
    (data / "annotations" / ".locks").mkdir(parents=True)
    (data / "annotations" / ".locks" / "00002.tar").write_text("1")  # of a run that was killed
    annotate(data, bundle_folder)
    assert lines[-1].startswith("3/3 shards, 5 images, ") and lines[-1].endswith(" 0:00:00 left")
    assert not any("shards, 6 images" in line for line in lines)


def test_a_shard_that_gets_done_during_a_report_counts_once(tmp_path, monkeypatch, capsys):
    now, threads = {"a.tar": ("before", 0)}, []
    monkeypatch.setattr(annotation_job, "progress", lambda folder, shard: now[shard])
    status = annotation_job._Status(tmp_path, {"a.tar": 4})

    def gets_done(folder, shard):
        threads.append(threading.Thread(target=status.pass_shard, args=(shard, 4)))
        threads[-1].start()
        threads[-1].join(0.1)
        return "after", 3

    monkeypatch.setattr(annotation_job, "progress", gets_done)
    status.report()
    threads[0].join()
    status.report()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("0/1 shards, 3 images, ") and last.startswith("1/1 shards, 4 images, ")


class _Deadly:
    """Kills the process that asks it for annotations."""

    def __init__(self, name):
        self.name = name

    def __call__(self, images):
        os.kill(os.getpid(), signal.SIGKILL)


def killed_once(folder, shard):
    """What a worker does: the first that comes to the second shard is killed in the midst of it."""
    mark = folder / "killed"
    if shard == "00001.tar" and not mark.exists():
        mark.touch()
        annotate_shard(folder, shard, _Deadly(annotation_job._annotator.name))
    return annotation_job.attempt(folder, shard, annotation_job._annotator)


def killed_always(folder, shard):
    if shard == "00001.tar":
        annotate_shard(folder, shard, _Deadly(annotation_job._annotator.name))
    return annotation_job.attempt(folder, shard, annotation_job._annotator)


def test_a_killed_worker_is_replaced(data, done, bundle_folder, monkeypatch):
    monkeypatch.setattr(annotation_job, "_work", killed_once)
    assert annotate(data, bundle_folder, workers=2) == 5
    assert (data / "killed").exists() and annotations(data) == annotations(done)


def test_a_shard_whose_result_is_lost_with_its_pool_counts(data, done, bundle_folder, monkeypatch):
    annotator, pools = Annotator(bundle_folder, "cpu"), []

    def breaking(folder, bundle, shards, workers):
        pools.append(list(shards))
        results = (annotation_job.attempt(folder, shard, annotator) for shard in shards)
        if len(pools) == 1:
            next(results)
            return
        yield from results

    monkeypatch.setattr(annotation_job, "_pool", breaking)
    assert annotate(data, bundle_folder, workers=2) == 5
    assert pools == [["00000.tar", "00001.tar", "00002.tar"], ["00001.tar", "00002.tar"]]
    assert annotations(data) == annotations(done)


def test_a_shard_that_kills_its_worker_is_given_up_and_the_others_are_done(data, bundle_folder, monkeypatch):
    monkeypatch.setattr(annotation_job, "_work", killed_always)
    monkeypatch.setattr(annotation_job, "RETRIES", 1)
    with pytest.raises(DataError, match=r"1 shard\(s\) failed.*\n.*00001.tar: its worker was killed 2 times"):
        annotate(data, bundle_folder, workers=2)
    assert {name for name in annotations(data) if name.endswith(".parquet")} == {"00000.parquet", "00002.parquet"}


def test_ctrl_c_stops_the_workers_and_a_second_run_finishes_the_rest(bundle_folder, tmp_path):
    source, data = make_manifest_dataset(tmp_path / "source", pairs=40, infrared=0), tmp_path / "data"
    build([("folder", source)], data, CleaningConfig(8, skip=("duplicate", "misaligned")), shard_length=2)
    command = [sys.executable, "-m", "train.data", "annotate", str(data), "--bundle", str(bundle_folder)]
    process = subprocess.Popen(
        [*command, "--workers", "2"], cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip

    def done():
        return {path.name: path.stat().st_mtime_ns for path in (data / "annotations").glob("0*.parquet")}

    deadline = time.monotonic() + 300
    while not done() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]  # comes when no worker can write to it any more
    assert process.returncode == 130, error
    assert error.splitlines()[-1].startswith("stopped: give the same command again") and "Traceback" not in error
    assert "leaked" not in error
    first, begun = done(), list((data / "annotations" / ".locks").iterdir())
    assert 0 < len(first) < 20 and len(begun) - len(first) <= 2
    assert annotate(data, bundle_folder) == 40 - 2 * len(first)
    assert len(done()) == 20 and first.items() <= done().items()


def test_a_shard_that_another_worker_has_is_left_alone(data, bundle_folder, capsys):
    (data / "annotations" / ".locks").mkdir(parents=True)
    with (data / "annotations" / ".locks" / "00001.tar").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert annotate_shard(data, "00001.tar", Annotator(bundle_folder, "cpu")) is None
        annotate(data, bundle_folder)
        assert "\n1 shard(s) are left to another job" in capsys.readouterr().out
        assert {name.split(".")[0] for name in annotations(data)} == {"00000", "00002"}
    assert annotate(data, bundle_folder) == 2
    assert {name.split(".")[0] for name in annotations(data)} == set(SHARDS)


def test_a_shard_that_fails_is_tried_again_then_named(data, bundle_folder, monkeypatch):
    original, failures = annotation_job.annotate_shard, []

    def failing(folder, shard, annotator):
        if shard == "00001.tar" and len(failures) < failing.times:
            failures.append(shard)
            raise OSError("the disk was busy")
        return original(folder, shard, annotator)

    monkeypatch.setattr(annotation_job, "annotate_shard", failing)
    failing.times = 3
    with pytest.raises(DataError, match=r"1 shard\(s\) failed.*\n.*00001.tar: OSError: the disk was busy"):
        annotate(data, bundle_folder)
    failures.clear()
    failing.times = 2
    assert annotate(data, bundle_folder) == 2


def test_annotations_of_another_model_are_refused(done, bundle_folder, tmp_path):
    other = shutil.copytree(bundle_folder, tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    (other / "model_index.json").write_text(json.dumps(index | {"map_style": "union"}))
    assert model_name(other) != model_name(bundle_folder)
    with pytest.raises(DataError, match="was made by another model"):
        annotate(done, other)


def test_what_cannot_annotate_is_named(data, bundle_folder, tmp_path, capsys):
    shutil.copytree(bundle_folder / "captioner", tmp_path / "half" / "captioner")
    assert main(["annotate", str(data), "--bundle", str(tmp_path / "half")]) == 1
    assert "has no folder captioner_processor, segmenter" in capsys.readouterr().err
    assert main(["annotate", str(tmp_path), "--bundle", str(bundle_folder)]) == 1
    assert "make shards first" in capsys.readouterr().err
    with pytest.raises(ValueError, match="workers at least 1"):
        annotate(data, bundle_folder, workers=0)
