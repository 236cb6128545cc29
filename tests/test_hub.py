"""Fetching models, from a hub on this machine."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import huggingface_hub.file_download
import pytest
from fake_hub import COMMIT, checksums, running_hub
from huggingface_hub import constants
from huggingface_hub.utils import get_session

from diffv2ir import cli, hub, partial
from diffv2ir.hub import SOURCES, HubError, Source, download, locate

FOLDER = Source("owner/model", "a model", patterns=("*.json", "part/*"))
FILE = Source("owner/set", "a file", file="deep/model.ckpt", repo_type="dataset")
FILES = {"config.json": b"{}", "part/model.safetensors": b"w" * 4000, "notes.txt": b"not wanted"}


@pytest.fixture
def server(tmp_path):
    with running_hub(tmp_path / "cache") as server:
        server.repositories = {"models/owner/model": dict(FILES), "datasets/owner/set": {FILE.file: b"c" * 3000}}
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
    commit = f"owner/model: commit {COMMIT}"
    assert told == [f"owner/model: fetching 2 files, 0.00 GB, to {cache}", commit]
    server.fetched.clear()
    assert download(FOLDER, cache_dir=cache, tell=told.append) == folder
    assert not server.fetched and told[2:] == [commit]


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
    server.broken = {"config.json"}
    message = refusal(cache_dir=cache)
    assert "config.json" in server.fetched and message.startswith("owner/model: ")
    assert "fetch it again" in message
    server.broken, server.fetched = set(), []
    folder = download(FOLDER, cache_dir=cache)
    assert server.fetched == ["config.json"]
    assert (folder / "part" / "model.safetensors").read_bytes() == FILES["part/model.safetensors"]


def test_a_part_is_not_taken_for_the_whole(server, cache):
    server.broken = {"part/model.safetensors"}
    refusal(cache_dir=cache)
    server.refusal = (503, "", "")
    assert "only a part of it is here, and the hub cannot be reached" in refusal(cache_dir=cache)


@pytest.fixture
def small_chunks(monkeypatch):
    """What has arrived is written every hundred bytes, and so is there when it breaks off."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)


@pytest.mark.parametrize("source", [FILE, FOLDER], ids=["file", "folder"])
def test_what_is_fetched_shows_its_progress(server, small_chunks, cache, monkeypatch, capsys, source):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # also where nobody looks at a terminal
    name, size = {FILE: ("deep/model.ckpt", "3.00k"), FOLDER: ("part/model.safetensors", "4.00k")}[source]

    def shown():
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        bars = [line.removeprefix(f"{name}:") for line in lines if line.startswith(name)]
        assert all(f"/{size} " in bar for bar in bars)
        return [int(bar.partition("%")[0]) for bar in bars]

    server.broken = {name}
    refusal(source, cache_dir=cache)
    first = shown()
    server.broken = set()
    download(source, cache_dir=cache)
    rest = shown()
    assert (first[0], first[-1], rest[0], rest[-1]) == (0, 50, 50, 100)  # of the whole, also where it goes on


@pytest.mark.parametrize("place", ["cache", "folder"])
@pytest.mark.parametrize(
    ("source", "file", "size"), [(FILE, FILE.file, 3000), (FOLDER, "part/model.safetensors", 4000)]
)
def test_what_has_arrived_of_a_large_file_is_not_asked_for_again(
    server, small_chunks, tmp_path, place, source, file, size
):
    options = {"cache": {"cache_dir": tmp_path / "cache"}, "folder": {"to": tmp_path / "own"}}[place]
    server.broken = {file}
    assert "fetch it again, what has arrived is kept" in refusal(source, **options)
    (part,) = hub.parts(source, **options)
    assert part.stat().st_size == size // 2 and (file, 0) in server.ranges
    server.broken, server.ranges, told = set(), [], []
    path = download(source, tell=told.append, **options)
    assert [request for request in server.ranges if request[0] == file] == [(file, size // 2)]
    assert (path if source.file else path / file).read_bytes() == server.repositories[
        f"{source.repo_type}s/{source.repo_id}"
    ][file]
    assert "(0.00 GB of them were here already)" in told[0] and not hub.parts(source, **options)


def test_a_killed_download_goes_on(server, small_chunks, cache):
    server.stalled = {FILE.file}
    code = (
        "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 100; from diffv2ir.hub import *; "
        f"download(Source('owner/set', 'a file', file='{FILE.file}', repo_type='dataset'), cache_dir='{cache}')"
    )
    environment = {**os.environ, "HF_ENDPOINT": server.url}
    content = bytes(range(250)) * 4000  # more than a buffer holds
    server.repositories["datasets/owner/set"][FILE.file] = content
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[1])
    try:
        while not any(part.stat().st_size > len(content) // 4 for part in hub.parts(FILE, cache_dir=cache)):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    (part,) = hub.parts(FILE, cache_dir=cache)
    begun = part.stat().st_size
    orphan = part.with_name(f"{checksums(FILE.file, content)[1]}.0badcafe.incomplete")  # of huggingface_hub's own
    orphan.write_bytes(b"c")
    server.stalled, server.ranges = set(), []
    assert download(FILE, cache_dir=cache).read_bytes() == content
    assert server.ranges == [(FILE.file, begun)] and len(content) // 4 < begun < len(content)
    assert not part.exists() and not orphan.exists()


def test_only_the_rest_needs_room(server, small_chunks, cache, monkeypatch):
    server.broken = {FILE.file}
    refusal(FILE, cache_dir=cache)
    server.broken = set()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(1499))
    assert "are to be fetched, but" in refusal(FILE, cache_dir=cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("Usage", "free")(1500))
    assert download(FILE, cache_dir=cache).is_file()


def test_a_damaged_part_is_removed(server, small_chunks, cache):
    server.broken = {FILE.file}
    refusal(FILE, cache_dir=cache)
    (part,) = hub.parts(FILE, cache_dir=cache)
    part.write_bytes(b"x" * 1500)
    server.broken = set()
    assert "arrived damaged and was removed" in refusal(FILE, cache_dir=cache)
    assert not hub.parts(FILE, cache_dir=cache) and not (part.parent / part.name.partition(".")[0]).exists()
    assert download(FILE, cache_dir=cache).read_bytes() == b"c" * 3000


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_damaged_file_that_another_process_removes_meanwhile(server, cache, monkeypatch, moment):
    def checksum(path, length):
        path.resolve().unlink()
        path.unlink()
        if moment == "before":
            raise FileNotFoundError(path)
        return "0" * length

    monkeypatch.setattr(partial, "checksum", checksum)
    small = replace(FOLDER, patterns=("*.json",))
    assert refusal(small, cache_dir=cache) == (
        "owner/model: config.json arrived damaged and was removed; fetch it again"
    )


@pytest.mark.parametrize("file", ["config.json", "part/model.safetensors"])
def test_a_damaged_file_is_removed(server, cache, file):
    server.damaged = {file}
    assert f"{file} arrived damaged and was removed; fetch it again" in refusal(cache_dir=cache)
    server.damaged, server.fetched = set(), []
    folder = download(FOLDER, cache_dir=cache)
    assert server.fetched.count(file) == 1 and (folder / file).read_bytes() == FILES[file]


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


@pytest.mark.parametrize("answer", [(401, "", "Invalid username or password."), (404, "RepoNotFound", "")])
@pytest.mark.parametrize(
    ("variable", "saved", "words"),
    [
        (None, None, "on the hub (or a private one: log in with `hf auth login`)"),
        ("HF_TOKEN", "hf_saved", "the access token is wrong, or may not read it: correct or unset HF_TOKEN"),
        ("HUGGING_FACE_HUB_TOKEN", None, "may not read it: correct or unset HUGGING_FACE_HUB_TOKEN"),
        (None, "hf_saved", "the access token is wrong, or may not read it: log in anew with `hf auth login`"),
    ],
)
def test_a_repository_that_a_token_hides(server, cache, tmp_path, monkeypatch, answer, variable, saved, words):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "hf_wrong")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    if saved:
        (tmp_path / "token").write_text(saved)
    monkeypatch.setattr("huggingface_hub.utils._http.REPO_API_REGEX", re.compile("/(api|resolve)/"))  # of https alone
    server.refusal = answer
    message = refusal(cache_dir=cache)
    assert message.startswith("owner/model: neither a folder here nor a repository on the hub") and words in message
    assert "hf_" not in message


def test_a_file_that_is_not_there(server, cache):
    missing = Source("owner/set", "a file", file="other.ckpt", repo_type="dataset")
    assert "there is no file 'other.ckpt' in revision 'main'" in refusal(missing, cache_dir=cache)


def test_offline_is_one_sentence(server, cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in (FOLDER, FILE):
        assert "not downloaded before, and the hub cannot be reached" in refusal(source, cache_dir=cache)


@pytest.mark.parametrize("source", [FOLDER, FILE, replace(FOLDER, revision=COMMIT)], ids=["folder", "file", "pinned"])
def test_no_connection_is_said_at_once_and_as_the_reason(server, cache, monkeypatch, caplog, source):
    def sleep(seconds):
        pytest.fail("it tried again")

    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", sleep)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    message = refusal(source, cache_dir=cache)
    assert message.startswith(
        f"{source.repo_id}: not a folder here, not downloaded before, and the hub cannot be reached"
    )
    assert "refused" in message and "local_files_only" not in message and not caplog.records


def test_a_pinned_folder_that_is_here_needs_no_hub(server, cache):
    pinned = replace(FOLDER, revision=COMMIT)
    folder = download(pinned, cache_dir=cache)
    server.refusal, told = (404, "RepoNotFound", ""), []
    assert download(pinned, cache_dir=cache, tell=told.append) == folder
    assert told == [f"owner/model: commit {COMMIT}"]


@pytest.mark.parametrize("path", ["whoami-v2", "models/owner/none", "models/owner/model"])
def test_the_hub_here_answers_what_names_no_revision(server, path):
    response = get_session().get(f"{server.url}/api/{path}")
    assert response.status_code == (200 if path == "models/owner/model" else 404)


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


@pytest.mark.parametrize("name", ["sam", "sd15"])
def test_any_revision_of_what_has_a_name(server, monkeypatch, capsys, name):
    source = {"sam": FILE, "sd15": FOLDER}[name]
    monkeypatch.setitem(SOURCES, name, source)
    assert cli.main(["fetch", f"{name}@{COMMIT}"]) == 0
    printed = capsys.readouterr()
    assert Path(printed.out.strip()).exists() and f"{source.repo_id}: commit {COMMIT}" in printed.err
    assert cli.main(["fetch", f"{name}@older"]) == 2
    assert "there is no revision 'older'" in capsys.readouterr().err
    assert cli.main(["fetch", f"{name}@"]) == 2
    assert f"{name}@: no such file or folder" in capsys.readouterr().err
    assert listed(capsys)[f"{name}@{COMMIT}"].startswith(f"{source.what}, ")


def listed(capsys, *folders) -> dict[str, str]:
    """What `bundles` says of each, by its name."""
    assert cli.main(["bundles", *map(str, folders)]) == 0
    blocks = capsys.readouterr().out.replace("\n ", "\t").splitlines()
    return dict(block.split(": ", 1) for block in blocks)


def test_bundles_lists_an_interrupted_file_with_its_bytes(server, small_chunks, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(SOURCES, "flir", FILE)
    server.repositories["datasets/owner/set"][FILE.file] = b"c" * 600_000
    server.broken = {FILE.file}
    refusal(FILE)
    refusal(FILE, to=tmp_path / "own")
    found = listed(capsys, tmp_path / "own")
    assert found["flir"].startswith("a file, 0.3 MB, INCOMPLETE")
    assert "incomplete: `python -m diffv2ir fetch flir` goes on" in found["flir"]
    inside = found[str(tmp_path / "own" / FILE.file)]
    assert inside.startswith("a file, 0.3 MB, INCOMPLETE") and f"fetch flir --to {tmp_path / 'own'}` goes on" in inside


def test_bundles_knows_what_was_fetched_into_a_folder(
    server, small_chunks, bundle_folder, monkeypatch, capsys, tmp_path
):
    monkeypatch.setitem(SOURCES, "flir", FILE)
    text_to_image = {
        path.relative_to(bundle_folder).as_posix(): path.read_bytes()
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "captioner")
        for path in (bundle_folder / part).glob("*")
    }
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    index |= {part: ["diffusers", part] for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}
    text_to_image["model_index.json"] = json.dumps(index).encode()
    server.repositories["models/owner/base"] = text_to_image
    base = Source("owner/base", "where a training starts", COMMIT)
    plain = Source("owner/base", "another name for it")
    monkeypatch.setitem(SOURCES, "sd15", base)
    download(FILE, to=tmp_path / "file")
    download(base, to=tmp_path / "known")
    shutil.copytree(tmp_path / "known", tmp_path / "plain", ignore=shutil.ignore_patterns(".cache"))
    shutil.copytree(bundle_folder / "captioner", tmp_path / "blip")
    shutil.copy(bundle_folder / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "unet.safetensors")
    names = ["file", "known", "plain", "blip", "unet.safetensors"]
    found = listed(capsys, *(tmp_path / name for name in names))
    whats = [found[str(tmp_path / name)].rsplit(", ", 2)[0] for name in names if name != "file"]
    assert found[str(tmp_path / "file" / FILE.file)].startswith("a file, ")
    assert whats == [
        "where a training starts",
        "text-to-image folder (StableDiffusionPipeline)",
        "a model of type blip",
        "a single checkpoint",
    ]
    assert not any("INCOMPLETE" in found[name] for name in found if name.startswith(str(tmp_path)))
    shutil.rmtree(tmp_path / "known" / "vae")
    shutil.rmtree(tmp_path / "plain" / "vae")
    server.broken = {"unet/diffusion_pytorch_model.safetensors"}
    refusal(plain, to=tmp_path / "begun")
    found = listed(capsys, *(tmp_path / name for name in ("known", "plain", "begun")))
    assert all("INCOMPLETE" in found[str(tmp_path / name)] for name in ("known", "plain", "begun"))
    assert "vae: the folder is missing" in found[str(tmp_path / "plain")]
    assert f"fetch sd15 --to {tmp_path / 'known'}` goes on" in found[str(tmp_path / "known")]


def test_bundles_lists_what_is_here(server, bundle_folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # results of trainings below the folder are listed, too
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
    assert [line.split(": ")[0] for line in heads] == ["tiny", str(copy), "sd15", "flir", "owner/bundle"]
    assert [line.rsplit(", ", 1)[1] for line in heads] == [
        "complete",
        "INCOMPLETE",
        "INCOMPLETE",
        "complete",
        "complete",
    ]
    assert heads[0].startswith("tiny: bundle mini, styles night, ")
    assert "  - vae: the folder is missing" in lines
    assert "  incomplete: `python -m diffv2ir fetch sd15` goes on" in lines


def test_bundles_finds_what_conversions_and_trainings_made(server, bundle_folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = ["bundles/paper", "runs/tiny/bundle", "runs/phase2/result", "runs/tiny/phase2/result"]
    for name in names:
        shutil.copytree(bundle_folder, name)
    shutil.rmtree("runs/phase2/result/vae")
    text_to_image = Path("runs/phase1/result")
    text_to_image.mkdir(parents=True)
    (text_to_image / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    Path("runs/other").mkdir()
    found = listed(capsys)
    assert [name for name in found if "/" in name] == names
    assert {name for name in names if "INCOMPLETE" in found[name]} == {"runs/phase2/result"}
    assert sum(name.endswith("paper") for name in listed(capsys, tmp_path / "bundles" / "paper")) == 1


def test_commands_about_files_need_no_torch(bundle_folder, tmp_path):
    code = (
        "import sys; from diffv2ir.cli import main; main(['bundles']); main(['fetch', '.']); "
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "DIFFV2IR_TINY": str(bundle_folder)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[1])
