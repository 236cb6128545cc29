"""Serving the page: Gradio's server, and a health endpoint for whoever watches over it."""

from __future__ import annotations

from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from diffv2ir import __version__
from diffv2ir.ui.model import Model
from diffv2ir.ui.page import LAUNCH_OPTIONS

HEALTH = "/health"


def serve(demo: gr.Blocks, host: str, port: int | None, wait: bool = True, **options: Any) -> gr.Blocks:
    """Launch the page with its health endpoint; with `wait`, until the process is stopped.

    Raises:
        OSError: host or port cannot be used.
    """
    launch = {**LAUNCH_OPTIONS, **options}
    app, _, _ = demo.launch(server_name=host, server_port=port, prevent_thread_lock=True, **launch)
    # First: Gradio's own routes answer every other path.
    app.router.routes.insert(0, Route(HEALTH, health(demo.model)))
    if wait:
        demo.block_thread()
    return demo


def health(model: Model):
    """The handler of GET /health: 200 once the model is loaded, 503 before, or when it could not be."""

    async def answer(request: Request) -> JSONResponse:
        state = {"state": model.state, "bundle": model.facts.name, "version": __version__}
        return JSONResponse(state, status_code=200 if model.state == "ready" else 503)

    return answer
