"""Gradio is imported in half the time without its type stubs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_stubs() -> Iterator[None]:
    """Within it a class of a Gradio component is made without the `.pyi` that Gradio writes beside its source.

    It parses and compares them all at each start, which is two of the four seconds of `import gradio` on a small
    machine. What it makes no stub for is a class of no file, so that is what its classes are said to be.
    """
    getfile = inspect.getfile

    def refusing(thing: object) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("a component's class, which is to get no stub")
        return getfile(thing)

    inspect.getfile = refusing
    try:
        yield
    finally:
        inspect.getfile = getfile
