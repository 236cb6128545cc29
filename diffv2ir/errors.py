"""What other packages' exceptions say, in a sentence of ours."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of the message, or the exception's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
