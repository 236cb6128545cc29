"""Long work as an iterator of events: it runs in a thread and can be stopped wherever it tells how far it is."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Tell = Callable[[Any], bool]


@dataclass(frozen=True)
class Progress:
    """Photo or frame `number` is at `step` of `steps`; at step 0 it is being understood."""

    number: int
    step: int
    steps: int


class _End:
    def __init__(self, error: BaseException | None = None):
        self.error = error


def follow(work: Callable[[Tell], Iterable[Any]], cancelled: Callable[[], bool] = lambda: False) -> Iterator[Any]:
    """Yield what `work` tells and what it yields, in order; what it raises is raised here.

    Args:
        work: called in a thread, with a function that hands an event over and returns False once the work should end:
            `cancelled()` is true or this iterator was closed. The work goes on until it next tells something; `settle`
            waits for that.
    """
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    closed = threading.Event()

    def tell(event: Any) -> bool:
        events.put(event)
        return not (closed.is_set() or cancelled())

    def run() -> None:
        try:
            for event in work(tell):
                events.put(event)
            events.put(_End())
        except BaseException as error:
            events.put(_End(error))

    # In the caller's context, which says whose request this is.
    context = contextvars.copy_context()
    worker = threading.Thread(target=context.run, args=(run,), name="diffv2ir-work", daemon=True)
    worker.start()
    try:
        while not isinstance(event := events.get(), _End):
            yield event
        if event.error is not None:
            raise event.error
    finally:
        closed.set()
        _left.append(worker)  # not waited for here: who closes this may be the server's event loop


_left: list[threading.Thread] = []
_settling = threading.Lock()


def settle() -> None:
    """Wait for works that nobody follows any more and that are not at their end yet."""
    with _settling:
        while _left:
            _left.pop().join()
