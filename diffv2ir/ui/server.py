"""Serving the page: Gradio's server, and a health endpoint for whoever watches over it."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from diffv2ir import __version__
from diffv2ir.ui.model import Model
from diffv2ir.ui.page import LAUNCH_OPTIONS
from diffv2ir.ui.session import empty_idle

HEALTH = "/health"


def serve(demo: gr.Blocks, host: str, port: int | None, wait: bool = True, **options: Any) -> gr.Blocks:
    """Launch the page with its health endpoint, then load the model; with `wait`, until the process is stopped.

    Raises:
        OSError: host or port cannot be used.
    """
    _check_address(host)
    _name_tools(demo)
    launch = {**LAUNCH_OPTIONS, **options}
    app, _, _ = demo.launch(server_name=host, server_port=port, prevent_thread_lock=True, **launch)
    # First: Gradio's own routes answer every other path.
    app.router.routes.insert(0, Route(HEALTH, health(demo.page.model)))
    threading.Thread(target=_empty_sessions, name="diffv2ir-sessions", daemon=True).start()
    demo.page.model.start()  # not before, as the page would wait while torch is imported
    if wait:
        demo.block_thread()
    return demo


def _empty_sessions() -> None:
    while True:
        time.sleep(60)
        empty_idle()


def _check_address(host: str) -> None:
    """Refuse at once what Gradio would try with a hundred ports."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.bind(address)


def _name_tools(demo: gr.Blocks) -> None:
    """MCP names tools by their functions, which here are all called alike: give them the names of their endpoints.
    What fills the page when it is opened is neither tool nor endpoint."""
    for function in demo.fns.values():
        if any(event == "load" for _, event in function.targets):
            function.api_visibility = "private"
        elif function.api_visibility == "public":
            function.fn.__name__ = function.api_name


def health(model: Model):
    """The handler of GET /health: 200 once the model is loaded, 503 before, or when it could not be."""

    async def answer(request: Request) -> JSONResponse:
        state = {"state": model.state, "bundle": model.facts.name, "version": __version__}
        return JSONResponse(state, status_code=200 if model.state == "ready" else 503)

    return answer
