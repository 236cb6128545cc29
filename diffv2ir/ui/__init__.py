"""The web page. The only part of the library that imports Gradio."""

from diffv2ir.ui.stubs import without_stubs

with without_stubs():
    from diffv2ir.ui.model import BundleFacts, Model
    from diffv2ir.ui.page import LAUNCH_OPTIONS, Limits, build_demo
    from diffv2ir.ui.server import serve

__all__ = ["LAUNCH_OPTIONS", "BundleFacts", "Limits", "Model", "build_demo", "serve"]
