"""When Python looks for garbage in cycles: between two requests, never within one.

A full collection looks at every container that there is: with a million tracked keys for 40 to 190 ms, in
whichever call happens to make one object too many. Little of what a request leaves behind is in cycles.
"""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def collected_in_pauses() -> Generator[None]:
    """Inside, nothing is collected but by `collect` and `collect_all`. For the whole process.

    What there is at its start is not looked at before its end, unless by `collect_all`.
    """
    if not gc.isenabled():
        # Somebody outside has said so already.
        yield
        return
    gc.disable()
    collect()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


def collect() -> None:
    """Free the cycles among what came since the last call; what outlives it is not looked at again.

    So it takes as long as there is new, not as there is in all. Outside of `collected_in_pauses` nothing
    needs to be done.
    """
    if not gc.isenabled():
        gc.collect()
        gc.freeze()


def collect_all() -> None:
    """Free all cycles, also among what outlived a `collect`: something large was given up."""
    if not gc.isenabled():
        gc.unfreeze()
        collect()
