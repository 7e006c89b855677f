"""What our processes set about the interpreter before they import what is heavy."""

import gc

COLLECT_AFTER = (
    20_000  # new objects; Python's own 700 spends a seventh of the imports of torch and diffusers on garbage
)


def settle() -> None:
    """Lets this process look for cyclic garbage seldom."""
    gc.set_threshold(COLLECT_AFTER)
