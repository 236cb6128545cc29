"""A hub on this machine: as much of its HTTP interface as huggingface_hub needs to list, get and fill repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.file_download
import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".ckpt", ".pth", ".bin")


class FakeHub:
    """Repositories by "models/owner/name" or "datasets/owner/name": their files' contents by path.

    Attributes:
        refusal: status, error code and message with which everything is refused, or None.
        broken, damaged: files that break off in the middle, or of which a byte is wrong.
        stalled: files of which the second half does not come as long as they are in here.
        fetched: files that were asked for, in order.
        ranges: file and first byte of each of these requests.
        read_only: repositories that nobody may write to.
        created: what was asked for when a repository was made.
    """

    def __init__(self, url: str):
        self.url = url
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.refusal: tuple[int, str, str] | None = None
        self.broken: set[str] = set()
        self.damaged: set[str] = set()
        self.stalled: set[str] = set()
        self.fetched: list[str] = []
        self.ranges: list[tuple[str, int]] = []
        self.read_only: set[str] = set()
        self.created: list[dict] = []


@contextmanager
def running_hub(cache: Path):
    """The hub for huggingface_hub, whose cache is `cache`; it does not wait before it asks again."""
    with _running() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
        yield hub


@contextmanager
def _running():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def checksums(path: str, content: bytes) -> tuple[str, str]:
    """Git's SHA-1, and what the hub gives as ETag: SHA-256 of large files."""
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return git, hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else git


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self._answer(head=False)

    def do_POST(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if hub.refusal:
            return self._refuse(*hub.refusal)
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "api/repos/create":
            return self._create(json.loads(body))
        kind, owner, name, verb, _ = path.removeprefix("api/").split("/")
        repository = f"{kind}/{owner}/{name}"
        if repository in hub.read_only:
            return self._refuse(403, "", "Forbidden")
        if verb == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            answers = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self._json({"files": answers})
        for entry in map(json.loads, body.splitlines()):
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                hub.repositories[repository][entry["value"]["path"]] = content
        self._json({"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{owner}/{name}/commit/{COMMIT}"})

    def _create(self, wish: dict) -> None:
        hub, name = self.server.hub, f"{wish['organization']}/{wish['name']}"
        if f"models/{name}" in hub.repositories:
            return self._json({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
        hub.created.append(wish)
        hub.repositories[f"models/{name}"] = {}
        self._json({"url": f"{hub.url}/{name}"})

    def log_message(self, *arguments) -> None:
        pass

    def _answer(self, head: bool) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path).strip("/")
        if hub.refusal:
            return self._refuse(*hub.refusal)
        parts = path.removeprefix("api/").split("/")
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        if parts[-1] == "write":
            refused = f"{kind}/{'/'.join(parts[:2])}" in hub.read_only
            return self._refuse(403, "", "Forbidden") if refused else self._json({})
        if len(parts) < 4:  # no revision, or a path of which this hub knows nothing
            found = f"{kind}/{'/'.join(parts)}" in hub.repositories
            info = {"_id": "1", "id": "/".join(parts), "sha": COMMIT, "siblings": []}
            return self._json(info) if found else self._refuse(404, "RepoNotFound", "")
        name, verb, revision, rest = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
        files = hub.repositories.get(f"{kind}/{name}")
        if files is None:
            return self._refuse(404, "RepoNotFound", "")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound", "")
        if verb == "revision":
            return self._json({"_id": "1", "id": name, "sha": COMMIT, "siblings": []})
        if verb == "tree":
            return self._json([_entry(path, content) for path, content in files.items()])
        if rest not in files:
            return self._refuse(404, "EntryNotFound", "")
        return self._file(rest, files[rest], head)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, path: str, content: bytes, head: bool) -> None:
        hub, first = self.server.hub, 0
        if not head and (wanted := self.headers["Range"]):
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if first else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{checksums(path, content)[1]}"')
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if head:
            return
        hub.fetched.append(path)
        hub.ranges.append((path, first))
        if path in hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        half = max(first, len(content) // 2)
        self.wfile.write(content[first:half])
        self.wfile.flush()
        while path in hub.stalled:
            time.sleep(0.01)
        if path in hub.broken:
            self.connection.close()
        else:
            self.wfile.write(content[half:])


def _entry(path: str, content: bytes) -> dict:
    git, etag = checksums(path, content)
    entry = {"type": "file", "path": path, "size": len(content), "oid": git}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": etag, "size": len(content), "pointerSize": 100}
    return entry
