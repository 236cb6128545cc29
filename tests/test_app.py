"""The server: options and their environment variables, health, users, limits."""

import importlib
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import pytest
import yaml
from gradio_client import Client, handle_file
from packaging.requirements import Requirement
from PIL import Image

import app
from diffv2ir import imaging
from diffv2ir.cli import CommandError
from diffv2ir.pipeline import DiffV2IRPipeline
from diffv2ir.settings import GenerationSettings
from diffv2ir.ui import BundleFacts, Model, build_demo, serve
from diffv2ir.ui.model import ModelError


@pytest.fixture(autouse=True)
def same_limit_afterwards(monkeypatch):
    monkeypatch.setattr(imaging, "_max_pixels", imaging._max_pixels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def test_options_come_from_the_environment_and_the_flag_wins(monkeypatch):
    given = {"PORT": "9000", "QUEUE_SIZE": "3", "SHARE": "true", "BUNDLE": "x", "MCP": "0", "STYLE": ""}
    for name, value in given.items():
        monkeypatch.setenv("DIFFV2IR_" + name, value)
    options = app.build_parser().parse_args(["--port", "9001"])
    assert (options.port, options.queue_size, options.share, options.bundle) == (9001, 3, True, "x")
    assert options.mcp is False and options.style is None
    assert app.build_parser().parse_args(["--no-share"]).share is False


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("PORT", "many", "DIFFV2IR_PORT: must be a whole number from 1 to 65535, got 'many'"),
        ("PORT", "70000", "DIFFV2IR_PORT: must be a whole number from 1 to 65535, got '70000'"),
        ("QUEUE_SIZE", "0", "DIFFV2IR_QUEUE_SIZE: must be a whole number of at least 1, got '0'"),
        ("DTYPE", "int8", "DIFFV2IR_DTYPE: must be one of fp32"),
        ("MCP", "perhaps", "DIFFV2IR_MCP: must be one of 1"),
    ],
)
def test_a_bad_variable_is_refused_like_a_bad_option(monkeypatch, capsys, name, value, words):
    monkeypatch.setenv("DIFFV2IR_" + name, value)
    with pytest.raises(SystemExit) as end:
        app.build_parser().parse_args([])
    assert end.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("option, words", [("--port", "from 1 to 65535"), ("--max-pixels", "of at least 1")])
@pytest.mark.parametrize("value", ["abc", "0", "1.5", ""])
def test_a_number_of_another_kind_is_refused_in_plain_words(capsys, option, words, value):
    with pytest.raises(SystemExit):
        app.build_parser().parse_args([option, value])
    assert f"argument {option}: must be a whole number {words}, got {value!r}" in capsys.readouterr().err


def test_it_listens_to_this_machine_only_but_on_a_space(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert app.build_parser().parse_args([]).host == "127.0.0.1"
    monkeypatch.setenv("SPACE_ID", "a/b")
    assert app.build_parser().parse_args([]).host == "0.0.0.0"


@pytest.mark.parametrize(
    "arguments, words",
    [(["--bundle", "/nowhere"], "no such folder"), (["--style", "nir"], "general, night, got 'nir'"),
     (["--auth-file", "/nowhere"], "--auth-file /nowhere cannot be read")],
)  # fmt: skip
def test_what_cannot_be_served_is_one_line(bundle_folder, capsys, arguments, words):
    assert app.main(["--bundle", str(bundle_folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_an_address_of_another_machine_is_one_line(bundle_folder, capsys):
    assert app.main(["--bundle", str(bundle_folder), "--host", "203.0.113.7"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # after the progress of the model, which loads meanwhile
    assert "app.py: cannot listen on 203.0.113.7, port 7860-7959: " in error


def test_a_port_in_use_is_one_line(bundle_folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert app.main(["--bundle", str(bundle_folder), "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"app.py: port {port} is in use; choose another with --port\n"
    app.check_port("127.0.0.1", port)  # it is free now


def test_all_ports_in_use_is_one_line_of_ours(bundle_folder, capsys, monkeypatch):
    def serve(*arguments, **options):
        raise OSError("Cannot find empty port: set GRADIO_SERVER_PORT or pass it to launch()")

    monkeypatch.setattr("diffv2ir.ui.serve", serve)
    assert app.main(["--bundle", str(bundle_folder)]) == 2
    assert "port 7860-7959: all are in use, choose another with --port" in capsys.readouterr().err


def test_mcp_without_its_package_is_one_line(bundle_folder, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert app.main(["--bundle", str(bundle_folder), "--mcp"]) == 2
    assert capsys.readouterr().err == 'app.py: --mcp needs the package mcp: pip install "gradio[mcp]"\n'


def test_users(tmp_path):
    path = tmp_path / "users"
    path.write_text("# who may enter\nann:secret:with colon\n\nbob:x\n")
    assert app.read_users(path) == [("ann", "secret:with colon"), ("bob", "x")]
    path.write_text("ann:secret\n", encoding="utf-8-sig")  # as some editors save it
    assert app.read_users(path) == [("ann", "secret")]
    for text, words in (("ann\n", "line 1: expected user:password"), ("\n", "names no user")):
        path.write_text(text)
        with pytest.raises(CommandError, match=words):
            app.read_users(path)


def health(url):
    try:
        with urllib.request.urlopen(url + "health") as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_health_tells_whether_the_model_is_there(bundle_folder):
    go, begun = threading.Event(), threading.Event()

    def load():
        begun.set()
        go.wait(60)
        return DiffV2IRPipeline.from_pretrained(bundle_folder)

    model = Model(BundleFacts.read(bundle_folder), load)
    demo = serve(build_demo(model), "127.0.0.1", None, wait=False, quiet=True)
    try:
        status, answer = health(demo.local_url)
        assert status == 503 and answer["state"] == "loading" and answer["bundle"] == "mini"
        with urllib.request.urlopen(demo.local_url) as page:  # the page is up before the model
            assert page.status == 200
        assert begun.wait(60)  # though nobody asked for it
        go.set()
        model.get()
        assert health(demo.local_url)[0] == 200
    finally:
        go.set()
        demo.close()


def test_health_of_a_model_that_failed():
    def load():
        raise OSError("disk")

    model = Model(BundleFacts("x", GenerationSettings(), ("general",)), load)
    demo = serve(build_demo(model), "127.0.0.1", None, wait=False, quiet=True)
    try:
        with pytest.raises(ModelError, match="the server's log says why"):
            model.get()
        assert health(demo.local_url) == (
            503,
            {"state": "failed", "bundle": "x", "version": importlib.import_module("diffv2ir").__version__},
        )
    finally:
        demo.close()


def test_the_page_does_not_wait_for_torch(bundle_folder):
    code = (
        "import sys, pathlib; from diffv2ir.ui import BundleFacts; "
        f"BundleFacts.read(pathlib.Path({str(bundle_folder)!r})); "
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_endpoints_are_those_that_programs_need():
    model = Model(BundleFacts("x", GenerationSettings(), ("general",)), lambda: None)
    demo = serve(build_demo(model), "127.0.0.1", None, wait=False, quiet=True)
    try:
        with urllib.request.urlopen(demo.local_url + "gradio_api/info") as answer:
            endpoints = json.load(answer)["named_endpoints"]
        assert {"/translate", "/prepare", "/batch", "/video"} <= set(endpoints)
        assert not {"/Session", "/_notice"} & set(endpoints)
        # MCP offers them under the names of their functions.
        assert {"/" + call.fn.__name__ for call in demo.fns.values() if call.api_visibility == "public"} == set(
            endpoints
        )
    finally:
        demo.close()


def test_only_users_enter_but_health_is_open(bundle_folder, tmp_path):
    users = tmp_path / "users"
    users.write_text("ann:secret\n")
    arguments = ["--bundle", str(bundle_folder), "--auth-file", str(users)]
    demo, extras = app.prepare(app.build_parser().parse_args(arguments))
    serve(demo, "127.0.0.1", None, wait=False, quiet=True, **extras)
    try:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(demo.local_url + "config")
        form = urllib.parse.urlencode({"username": "ann", "password": "wrong"}).encode()
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(demo.local_url + "login", form)
        assert urllib.request.urlopen(demo.local_url + "login", form.replace(b"wrong", b"secret")).status == 200
        demo.page.model.get()
        assert health(demo.local_url)[0] == 200
    finally:
        demo.close()


def test_a_full_queue_is_told(photo, tmp_path):
    photo.save(tmp_path / "a.png")
    go = threading.Event()

    def load():
        go.wait(60)
        raise OSError("never there")

    model = Model(BundleFacts("x", GenerationSettings(), ("general",)), load)
    demo = serve(build_demo(model, queue_size=1), "127.0.0.1", None, wait=False, quiet=True)
    try:
        client = Client(demo.local_url, verbose=False)
        jobs = [client.submit(photo=handle_file(tmp_path / "a.png"), api_name="/prepare") for _ in range(4)]
        done, _ = wait([job.future for job in jobs], 30, FIRST_COMPLETED)
        assert "Queue is full" in str(done.pop().exception())
    finally:
        go.set()
        demo.close()


def test_nobody_passes_by_the_queue(served):
    request = urllib.request.Request(
        served[0].local_url + "gradio_api/run/prepare", b'{"data": []}', {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 404 and b"does not accept direct HTTP POST" in refused.value.read()


def test_the_front_matter_suits_a_space():
    root = Path(app.__file__).parent
    facts = yaml.safe_load((root / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert facts["sdk"] == "gradio" and (root / facts["app_file"]).is_file()
    assert {facts["colorFrom"], facts["colorTo"]} <= colours and len(facts["short_description"]) <= 60
    wanted = next(line for line in (root / "requirements.txt").read_text().splitlines() if line.startswith("gradio"))
    assert Requirement(wanted).specifier.contains(facts["sdk_version"])
