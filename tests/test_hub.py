"""Fetching models, from a hub on this machine."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub.file_download
import pytest
from fake_hub import COMMIT, checksums, running_hub
from huggingface_hub import constants

from diffv2ir import cli, hub
from diffv2ir.hub import SOURCES, HubError, Source, download, locate

FOLDER = Source("owner/model", "a model", patterns=("*.json", "part/*"))
FILE = Source("owner/set", "a file", file="deep/model.ckpt", repo_type="dataset")
FILES = {"config.json": b"{}", "part/model.safetensors": b"w" * 4000, "notes.txt": b"not wanted"}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with running_hub() as server:
        server.repositories = {"models/owner/model": dict(FILES), "datasets/owner/set": {FILE.file: b"c" * 3000}}
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
        yield server


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def refusal(source=FOLDER, **options) -> str:
    with pytest.raises(HubError) as error:
        download(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_with_what_is_wanted(server, cache):
    told = []
    folder = download(FOLDER, cache_dir=cache, tell=told.append)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "config.json",
        "part/model.safetensors",
    }
    assert (folder / "part" / "model.safetensors").read_bytes() == FILES["part/model.safetensors"]
    assert told == [f"owner/model: fetching 2 files, 0.00 GB, to {cache}"]
    server.fetched.clear()
    assert download(FOLDER, cache_dir=cache, tell=told.append) == folder
    assert not server.fetched and len(told) == 1


def test_one_file_of_a_dataset(server, cache, tmp_path):
    path = download(FILE, cache_dir=cache)
    assert path.name == "model.ckpt" and path.read_bytes() == b"c" * 3000
    assert download(FILE, to=tmp_path / "own") == tmp_path / "own" / FILE.file
    assert (tmp_path / "own" / FILE.file).read_bytes() == b"c" * 3000


def test_what_is_here_is_found_without_the_hub(server, cache):
    fetched = [download(source, cache_dir=cache) for source in (FOLDER, FILE)]
    server.refusal = (503, "", "")
    assert [download(source, cache_dir=cache) for source in (FOLDER, FILE)] == fetched
    assert [hub.here(source, cache) for source in (FOLDER, FILE)] == fetched


def test_a_file_that_breaks_off_is_fetched_again_and_the_others_are_kept(server, cache):
    server.broken = {"part/model.safetensors"}
    message = refusal(cache_dir=cache)
    assert "part/model.safetensors" in server.fetched and message.startswith("owner/model: ")
    assert "fetch it again" in message
    server.broken, server.fetched = set(), []
    folder = download(FOLDER, cache_dir=cache)
    assert server.fetched == ["part/model.safetensors"]
    assert (folder / "part" / "model.safetensors").read_bytes() == FILES["part/model.safetensors"]


def test_a_part_is_not_taken_for_the_whole(server, cache):
    server.broken = {"part/model.safetensors"}
    refusal(cache_dir=cache)
    server.refusal = (503, "", "")
    assert "only a part of it is here, and the hub cannot be reached" in refusal(cache_dir=cache)


@pytest.mark.parametrize("file", ["config.json", "part/model.safetensors"])
def test_a_damaged_file_is_removed(server, cache, file):
    server.damaged = {file}
    assert f"{file} arrived damaged and was removed; fetch it again" in refusal(cache_dir=cache)
    server.damaged, server.fetched = set(), []
    folder = download(FOLDER, cache_dir=cache)
    assert server.fetched == [file] and (folder / file).read_bytes() == FILES[file]


def test_a_checksum_of_our_own(server, cache):
    own = checksums(FILE.file, b"c" * 3000)[1]
    wrong = Source(FILE.repo_id, FILE.what, file=FILE.file, repo_type="dataset", sha256="0" * 64)
    assert "arrived damaged" in refusal(wrong, cache_dir=cache)
    right = Source(FILE.repo_id, FILE.what, file=FILE.file, repo_type="dataset", sha256=own)
    assert download(right, cache_dir=cache).is_file()


def test_a_full_disk_is_noticed_before_anything_is_fetched(server, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(1000))
    message = refusal(cache_dir=cache)
    assert "are to be fetched, but" in message and "free" in message and not server.fetched


@pytest.mark.parametrize("source", [FOLDER, FILE], ids=["folder", "file"])
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, "GatedRepo", ""), "gated: accept its terms on https://huggingface.co/"),
        ((401, "", "Invalid credentials in Authorization header"), "the hub refuses the access token"),
        ((404, "RepoNotFound", ""), "neither a folder here nor a repository on the hub"),
        ((404, "RevisionNotFound", ""), "there is no revision 'main'"),
        ((503, "", ""), "the hub cannot be reached"),
    ],
)
def test_each_refusal_has_its_sentence(server, cache, answer, words, source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    server.refusal = answer
    assert words in refusal(source, cache_dir=cache)


def test_a_file_that_is_not_there(server, cache):
    missing = Source("owner/set", "a file", file="other.ckpt", repo_type="dataset")
    assert "there is no file 'other.ckpt' in revision 'main'" in refusal(missing, cache_dir=cache)


def test_offline_is_one_sentence(server, cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in (FOLDER, FILE):
        assert "not downloaded before, and the hub cannot be reached" in refusal(source, cache_dir=cache)


def test_one_fetches_while_others_wait(server, cache):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download(FILE, cache_dir=cache), range(4)))
    assert len(set(paths)) == 1 and server.fetched == [FILE.file]


def test_a_local_path_is_taken_as_it_is(server, tmp_path):
    assert locate(str(tmp_path)) == tmp_path
    with pytest.raises(HubError, match="none of sd15, blip, sam, stage2, m3fd, flir"):
        locate(str(tmp_path / "none"))
    assert not server.fetched


def test_pins_are_commits_or_the_newest_state():
    for source in SOURCES.values():
        assert source.revision == "main" or len(source.revision) == len(COMMIT)
        assert source.file or source.patterns


def test_fetch_prints_where_it_is(server, monkeypatch, capsys, cache, tmp_path):
    monkeypatch.setitem(SOURCES, "sam", FILE)
    assert cli.main(["fetch", "sam"]) == 0
    printed = capsys.readouterr()
    assert Path(printed.out.strip()).read_bytes() == b"c" * 3000 and cache in Path(printed.out.strip()).parents
    assert "owner/set: fetching 1 files" in printed.err
    assert cli.main(["fetch", "sam", "--to", str(tmp_path / "own")]) == 0
    assert Path(capsys.readouterr().out.strip()) == tmp_path / "own" / FILE.file
    server.refusal = (403, "GatedRepo", "")
    assert cli.main(["fetch", "sam", "--to", str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.startswith("diffv2ir fetch: owner/set: gated")


def test_bundles_lists_what_is_here(server, bundle_folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("DIFFV2IR_TINY", str(bundle_folder))
    monkeypatch.setitem(SOURCES, "sd15", FOLDER)
    monkeypatch.setitem(SOURCES, "flir", FILE)
    copy = shutil.copytree(bundle_folder, tmp_path / "copy")
    shutil.rmtree(copy / "vae")
    server.repositories["models/owner/bundle"] = {
        path.relative_to(bundle_folder).as_posix(): path.read_bytes()
        for path in bundle_folder.rglob("*")
        if path.is_file()
    }
    download(FILE)
    download(Source("owner/bundle", "a bundle"))
    server.broken = {"part/model.safetensors"}
    refusal(FOLDER)
    assert cli.main(["bundles", str(copy)]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert [line.split(": ")[0] for line in heads] == ["tiny", str(copy), "owner/bundle", "sd15", "flir"]
    assert [line.rsplit(", ", 1)[1] for line in heads] == [
        "complete",
        "INCOMPLETE",
        "complete",
        "INCOMPLETE",
        "complete",
    ]
    assert heads[0].startswith("tiny: bundle mini, styles night, ")
    assert "  - vae: the folder is missing" in lines
    assert "  incomplete: `python -m diffv2ir fetch sd15` goes on" in lines


def test_commands_about_files_need_no_torch(bundle_folder, tmp_path):
    code = (
        "import sys; from diffv2ir.cli import main; main(['bundles']); main(['fetch', '.']); "
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "DIFFV2IR_TINY": str(bundle_folder)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[1])
