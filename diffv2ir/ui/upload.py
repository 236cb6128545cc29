"""An image field that hands over the uploaded file as it is."""

from __future__ import annotations

import gradio as gr
from gradio.data_classes import ImageData


class Upload(gr.Image):
    """`gr.Image` whose handlers get the path of the upload, unopened: orientation, size and what to say of a bad file
    are the matter of `imaging`."""

    is_template = True  # in the browser it is a gr.Image

    def preprocess(self, payload: ImageData | None) -> str | None:
        return None if payload is None else payload.path
