"""What our processes set about the interpreter before they import what is heavy, and how Ctrl-C ends them."""

from __future__ import annotations

import gc
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

COLLECT_AFTER = (
    20_000  # new objects; Python's own 700 spends a seventh of the imports of torch and diffusers on garbage
)


def settle() -> None:
    """Lets this process look for cyclic garbage seldom."""
    gc.set_threshold(COLLECT_AFTER)


@contextmanager
def interrupt_asks_to_end() -> Iterator[None]:
    """Within the block the first Ctrl-C (SIGINT) is what SIGTERM is, a request to save and end; the second interrupts.
    For the main thread."""

    def ask(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # not `before`: a shell's background job ignores it
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
