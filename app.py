"""The demo: `python app.py`, then open the printed address. Also the entry of the Hugging Face Space."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

from diffv2ir.cli import CommandError, add_model_arguments, load_pipeline


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="DiffV2IR in the browser: colour photo to infrared picture.")
    add_model_arguments(parser)
    on_space = "SPACE_ID" in os.environ
    parser.add_argument(
        "--host",
        default="0.0.0.0" if on_space else "127.0.0.1",
        help="address to listen on (default: this machine only; 0.0.0.0 = every network it is in)",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        pipe = load_pipeline(options)
    except CommandError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    from diffv2ir.ui import LAUNCH_OPTIONS, Model, build_demo

    try:
        build_demo(Model.ready(pipe)).launch(server_name=options.host, server_port=options.port, **LAUNCH_OPTIONS)
    except OSError as error:
        print(f"app.py: cannot listen on {options.host}, port {options.port or '7860-7959'}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
