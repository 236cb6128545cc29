"""How long a visitor waits: for the page of a server that starts, for its first picture, and for the next ones.

`python -m benchmarks.page [--bundle BUNDLE] [--runs 3]` starts `app.py` as a user does, asks for the page until it is
there, and sends the example photos through the page's own endpoint: caption, map and picture of each. Prints Markdown;
medians over the runs. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from gradio_client import Client, handle_file

from diffv2ir.ui.examples import example_photos

APP = Path(__file__).resolve().parent.parent / "app.py"
PATIENCE = 120.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--runs", type=int, default=3, help="starts of the server (default: 3)")
    arguments = parser.parse_args()
    photos = [path for path, _, _ in example_photos(("general",))]
    runs = [visit(arguments.bundle, photos) for _ in range(arguments.runs)]
    print(f"{arguments.bundle}, {os.cpu_count()} CPU cores, {arguments.runs} starts, {len(photos)} photos each\n")
    print("| | seconds, median | longest |\n| --- | --- | --- |")
    for name in runs[0]:
        seconds = [second for run in runs for second in run[name]]
        print(f"| {name} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")


def visit(bundle: str, photos: list[str]) -> dict[str, list[float]]:
    """Seconds from the server's start to the page and to the first picture, and those of each picture after it."""
    started = time.monotonic()
    with server(bundle) as address:
        page = time.monotonic() - started
        client = Client(address, verbose=False)
        ends = []
        for photo in photos:
            client.predict(handle_file(photo), api_name="/translate")
            ends.append(time.monotonic())
    return {
        "from the start to the page": [page],
        "from the start to the first picture": [ends[0] - started],
        "a photo to its picture, after that": [after - before for before, after in pairwise(ends)],
    }


@contextmanager
def server(bundle: str) -> Iterator[str]:
    """`app.py` in a process of its own; its address, once it answers.

    Raises:
        RuntimeError: it ended, or does not answer in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    process = subprocess.Popen([sys.executable, APP, "--bundle", bundle, "--port", str(port)], stdout=sys.stderr)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(address, timeout=PATIENCE).close()
                break
            except urllib.error.URLError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{APP} does not answer at {address}") from error
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
