"""How a tab asks the model for work: the request is numbered at the click, waits its turn, and can be stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import gradio as gr

from diffv2ir.ui.common import MODEL_QUEUE, WORKING, by_name, status, told_to_the_user
from diffv2ir.ui.session import Session

if TYPE_CHECKING:
    from diffv2ir.ui.batch import BatchTab
    from diffv2ir.ui.grid import GridTab
    from diffv2ir.ui.page import Page
    from diffv2ir.ui.video import VideoTab

Work = Callable[[dict[str, Any]], Iterator[Any]]

# Not queued: it must come through while the model is at work.
AT_ONCE: dict[str, Any] = dict(queue=False, show_progress="hidden", api_visibility="private")


_STOPPING = "Stopping …"
_REFUSED = "⚠️ Not begun. The message that has just appeared says why; if too many people wait, try again in a minute."


def connect_stop(button: gr.Button, page: Page, line: gr.HTML) -> None:
    """Let a button end the session's work at its next step, and what waits for the model; the page says so at once."""
    button.click(Session.stop, page.session, None, **AT_ONCE)
    button.click(None, line, line, js=_instead_of_working(_STOPPING), api_visibility="private")


def tell_refused(work: Any, line: gr.HTML) -> None:
    """Say in the status line that a request did not come to its handler: the queue is full, or a number is out of its
    range. Of that the server tells nobody but the browser, which shows it in a corner."""
    work.failure(None, line, line, js=_instead_of_working(_REFUSED), api_visibility="private")


def _instead_of_working(text: str) -> str:
    """JavaScript that puts `text` in the place of a status line after which another one would come."""
    return f"(line) => (line || '').includes({json.dumps(WORKING)}) ? {json.dumps(status(text))} : line"


def waiting(page: Page, text: str = "Waiting for the model …") -> str:
    """The status line of who waits; of another text while the model still loads."""
    loading = page.model.state == "loading"
    return status("The model is still loading; your turn comes next …" if loading else text, working=True)


def telling(work: Work, line: gr.HTML) -> Work:
    """`work`, whose errors are also in the status line, where they take the place of what it was at."""

    @wraps(work)
    def tell(data: dict[str, Any]) -> Iterator[Any]:
        try:
            with told_to_the_user():
                yield from work(data)
        except gr.Error as error:
            yield {line: status(f"⚠️ {error.message}")}
            raise

    return tell


def connect_start_and_stop(
    tab: BatchTab | GridTab | VideoTab,
    work: Work,
    outputs: Sequence[Any],
    optional: Sequence[str] = (),
    **endpoint: Any,
) -> None:
    """A tab's Start and Stop, and the endpoint that does the same for programs.

    Args:
        work: gets the values of `tab.inputs` by name, and "request": its number in the session, taken at the click. A
            program's, which has no click, is taken when the model gets to it.
        optional: inputs that a program may leave out, see `by_name`.
        endpoint: its `api_name`, and what else an event takes.
    """
    page, session = tab.page, tab.page.session
    request = gr.Number(0, precision=0, visible="hidden")
    inputs = {**tab.inputs, "request": request}

    def begin(session: Session) -> tuple[int, str]:
        return session.begin(), waiting(page)

    @wraps(work)
    def of_program(data: dict[str, Any]) -> Iterator[Any]:
        yield from work({**data, "request": data["session"].begin()})

    queued = dict(outputs=list(outputs), show_progress="hidden", **MODEL_QUEUE)
    begun = tab.start_button.click(begin, session, [request, tab.status], **AT_ONCE)
    worked = begun.success(
        by_name(telling(work, tab.status), inputs), list(inputs.values()), api_visibility="private", **queued
    )
    tell_refused(worked, tab.status)
    connect_stop(tab.stop_button, page, tab.status)
    gr.Button(visible=False).click(
        by_name(of_program, tab.inputs, optional), list(tab.inputs.values()), **endpoint, **queued
    )
