"""The demo: `python app.py`, then open the printed address. Also the entry of the Hugging Face Space."""

from __future__ import annotations

import argparse
import errno
import math
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

from diffv2ir.loading import CommandError, add_model_arguments, load_pipeline, tell_on_stderr

_ENVIRONMENT = "DIFFV2IR_"
# What one visitor may ask for, on a machine of one's own and on a Space, where others wait meanwhile.
_LIMITS = (
    ("--max-pixels", "pixels of a photo", 50_000_000, 25_000_000),
    ("--max-photos", "photos of a batch", 200, 20),
    ("--max-frames", "frames of a clip that are translated", 300, 60),
)
_YES, _NO = ("1", "true", "True", "yes", "on"), ("0", "false", "False", "no", "off")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="DiffV2IR in the browser: colour photo to infrared picture.",
        epilog="Each option is also an environment variable, DIFFV2IR_BUNDLE for --bundle, DIFFV2IR_MAX_PIXELS for "
        "--max-pixels and so on, 1 or 0 for those without a value; the option wins.",
    )
    add_model_arguments(parser)
    parser.add_argument("--style", help="style that the page starts with (default: the bundle's)")
    on_space = "SPACE_ID" in os.environ
    parser.add_argument(
        "--host",
        default="0.0.0.0" if on_space else "127.0.0.1",
        help="address to listen on (default: this machine only; 0.0.0.0 = every network it is in)",
    )
    parser.add_argument("--port", type=_port, help="default: the first free one from 7860")
    switch = dict(action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--share", **switch, help="a public link through Gradio's servers")
    parser.add_argument(
        "--queue-size", type=_positive, default=20, help="requests that may wait for the model (default: 20)"
    )
    for name, of, here, space in _LIMITS:
        parser.add_argument(
            name,
            type=_positive,
            default=space if on_space else here,
            help=f"{of} (default: {here}; on a Space {space})",
        )
    parser.add_argument(
        "--concurrency",
        type=_positive,
        default=8,
        help="light requests (views, history, comparisons) served at a time; the model makes one picture at a time, "
        "and the others wait their turn (default: 8)",
    )
    parser.add_argument("--auth-file", type=Path, help="file of lines user:password; only they may enter")
    parser.add_argument("--mcp", **switch, help="offer the endpoints as MCP tools (needs gradio[mcp])")
    _read_environment(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        if options.port:
            check_port(options.host, options.port)
        demo, extras = prepare(options)
    except CommandError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    from diffv2ir.ui import serve

    try:
        serve(demo, options.host, options.port, share=options.share, mcp_server=options.mcp, **extras)
    except OSError as error:
        # Gradio's own, without a number, when it has tried all ports.
        why = error if error.errno is not None else "all are in use, choose another with --port"
        print(f"app.py: cannot listen on {options.host}, port {options.port or '7860-7959'}: {why}", file=sys.stderr)
        return 2
    return 0


def check_port(host: str, port: int) -> None:
    """Refuse an address at once, before the model is loaded for it.

    Raises:
        CommandError: something else listens there, or nobody may.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server will: what an earlier run left behind on the port is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise CommandError(f"port {port} is in use; choose another with --port") from error
        raise CommandError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


def prepare(options: argparse.Namespace):
    """The page for these options, and what else its launch needs. The model loads once it is served.

    Raises:
        CommandError: no such bundle, style or file of users; no package for what an option asks for.
    """
    from diffv2ir import bundle, imaging
    from diffv2ir.ui import BundleFacts, Limits, Model, build_demo
    from diffv2ir.ui.zerogpu import lending_gpu
    from diffv2ir.video import ClipLimits

    users = read_users(options.auth_file) if options.auth_file else None
    if options.mcp:
        _require_mcp()
    imaging.limit_pixels(options.max_pixels)
    tell_on_stderr()
    try:
        folder = bundle.resolve(options.bundle)
        options.bundle = str(folder)  # found, and told, once
        facts = BundleFacts.read(folder)
        if options.style:
            facts = facts.starting_with(options.style)
    except (bundle.BundleError, ValueError, OSError) as error:
        raise CommandError(error) from error
    model = Model(facts, lending_gpu(lambda: load_pipeline(options)))
    limits = Limits(options.max_photos, ClipLimits(frames=options.max_frames))
    demo = build_demo(model, options.queue_size, options.concurrency, limits)
    return demo, {"auth": users} if users else {}


def read_users(path: Path) -> list[tuple[str, str]]:
    """User and password of each line `user:password`; empty lines and lines that begin with # are left out.

    Raises:
        CommandError: no such file, a line of another form, or no user at all.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--auth-file {path} cannot be read: {error}") from error
    users = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, separator, password = line.strip().partition(":")
        if not (user and separator and password):
            raise CommandError(f"--auth-file {path}, line {number}: expected user:password")
        users.append((user, password))
    if not users:
        raise CommandError(f"--auth-file {path} names no user; write lines user:password")
    return users


def _require_mcp() -> None:
    from importlib.util import find_spec

    if find_spec("mcp") is None:
        raise CommandError('--mcp needs the package mcp: pip install "gradio[mcp]"')


def _positive(text: str) -> int:
    return _whole(text, math.inf, "of at least 1")


def _port(text: str) -> int:
    return _whole(text, 65535, "from 1 to 65535")


def _whole(text: str, most: float, words: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number {words}, got {text!r}")
    return value


def _read_environment(parser: argparse.ArgumentParser) -> None:
    """Environment variables as defaults. One that is set but empty counts as not set."""
    for action in parser._actions:
        variable = _ENVIRONMENT + action.dest.upper()
        switch = isinstance(action, argparse.BooleanOptionalAction)
        value = os.environ.get(variable, "")
        if not value or action.dest == "help":
            continue
        allowed = _YES + _NO if switch else action.choices
        if allowed and value not in allowed:
            parser.error(f"environment variable {variable}: must be one of {', '.join(allowed)}, got {value!r}")
        try:
            given = value in _YES if switch else (action.type or str)(value)
        except argparse.ArgumentTypeError as error:
            parser.error(f"environment variable {variable}: {error}")
        parser.set_defaults(**{action.dest: given})


if __name__ == "__main__":
    sys.exit(main())
