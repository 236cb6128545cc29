"""What every part of the page uses: how handlers are called, how they speak, and what a setting looks like."""

from __future__ import annotations

import dataclasses
import html
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from diffv2ir.memory import OutOfDeviceMemory
from diffv2ir.settings import GenerationSettings

logger = logging.getLogger(__name__)

# One model, whose weights a style changes in place: one piece of work at a time.
MODEL_QUEUE: dict[str, Any] = dict(concurrency_limit=1, concurrency_id="model")

# In a status line after which another one comes.
WORKING = 'class="working"'

_TOO_LARGE = "The model ran out of memory with these settings. Try a lower resolution."
_OUR_FAULT = "Something went wrong here, and it was logged. Try again; if it stays, reload the page."


def field_of(name: str) -> Mapping[str, Any]:
    """Label, help and range of a field of `GenerationSettings`."""
    return {field.name: field for field in dataclasses.fields(GenerationSettings)}[name].metadata


def by_name(
    method: Callable[[dict[str, Any]], Any], inputs: Mapping[str, gr.components.Component], optional: Sequence[str] = ()
) -> Callable[..., Any]:
    """`method`, which takes a dict of values by name, as Gradio calls it: with the values of `inputs` in their order.

    The names are also those of the API, where a program may leave out those that are `optional`, the last ones, which
    are then None, and those whose component has a value. Errors are told as `told_to_the_user` does it. `method` may be
    a generator.
    """
    names = list(inputs)

    if inspect.isgeneratorfunction(method):

        def handle(*values: Any) -> Iterator[Any]:
            with told_to_the_user():
                yield from method(_named(names, values))

    else:

        def handle(*values: Any) -> Any:
            with told_to_the_user():
                return method(_named(names, values))

    parameter = inspect.Parameter.POSITIONAL_OR_KEYWORD
    handle.__signature__ = inspect.Signature(
        [
            inspect.Parameter(name, parameter, default=None if name in optional else inspect.Parameter.empty)
            for name in names
        ]
    )
    handle.__doc__ = method.__doc__
    return handle


def _named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """The values by name; a session among them is in use."""
    data = dict(zip(names, values, strict=True))
    if "session" in data:
        data["session"].touch()
    return data


@contextmanager
def told_to_the_user():
    """What the user can mend becomes one sentence on the page; anything else one that hides the server's insides."""
    try:
        yield
    except gr.Error:
        raise
    except OutOfDeviceMemory as error:  # whose remedies are those of the command line
        logger.error("a request failed: %s", error)
        raise gr.Error(_TOO_LARGE, print_exception=False) from error
    except (ValueError, FloatingPointError) as error:
        raise gr.Error(sentence(str(error)), print_exception=False) from error
    except Exception as error:
        logger.exception("a request failed")
        raise gr.Error(_OUR_FAULT, print_exception=False) from error


# Folders before a file's name.
_FOLDERS = re.compile(r"(?<![\w.])(?:/[^/\s:'\"]+)+/(?=[^/\s])")

# What a text may begin with that is a name: a file, as in "my photo.jpg: ...", or what has a dot or an underscore.
_NAME = re.compile(r"[^:]*\.\w+:|\S*[._]\S*\w")


def sentence(text: str) -> str:
    """`text` with a capital first letter and a full stop, and files by their names, without the server's folders.

    A file or a setting that the text begins with keeps its name as it is.
    """
    text = _FOLDERS.sub("", text)
    first = text.split(maxsplit=1)[0].rstrip(":,") if text.strip() else ""
    if first not in GenerationSettings.__dataclass_fields__ and not _NAME.match(text):
        text = text[:1].upper() + text[1:]
    return text + ("" if text.endswith((".", "!", "?")) else ".")


def duration(seconds: float) -> str:
    """A time as a status line tells it: in seconds, from a minute and a half on in minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def status(
    text: str, done: int | None = None, total: int | None = None, details: str = "", working: bool = False
) -> str:
    """A line that a screen reader announces, with a progress bar if there is a total, and details in a fold: HTML.

    With a total, or where it says that it is `working`, another line has to follow: see `WORKING`.
    """
    mark = f" {WORKING}" if working or total is not None else ""
    line = f'<div role="status" aria-live="polite"{mark}>{html.escape(text)}</div>'
    if details:
        line += f"<details><summary>Details</summary>{html.escape(details)}</details>"
    if total is None:
        return line
    return line + f'<progress value="{done}" max="{total}" aria-label="progress"></progress>'
