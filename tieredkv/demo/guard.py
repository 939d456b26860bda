"""The guard: a small process that ends what the demo left running, should the demo itself be killed.

It reads lines from its standard input, whose other end only the demo holds, and acts when that end is
closed, for whatever reason. Lines: `kill GROUP`, `term GROUP` (asked to end first: its leader has
processes of its own to end), `remove DIRECTORY`, and `forget WHAT`, which takes one back. Run as a plain
script (`python -I -S`), so that it starts at once and needs nothing.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable

TERM_WAIT_S = 6.0
POLL_S = 0.05


def main() -> None:
    """Read until the end of the input, then deal with all that is still named."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    verbs: dict[str, str] = {}
    for line in sys.stdin:
        verb, _, what = line.rstrip("\n").partition(" ")
        if verb == "forget":
            verbs.pop(what, None)
        else:
            verbs[what] = verb
    end_groups(
        kill=[int(what) for what, verb in verbs.items() if verb == "kill"],
        term=[int(what) for what, verb in verbs.items() if verb == "term"],
    )
    for what, verb in verbs.items():
        if verb == "remove":
            shutil.rmtree(what, ignore_errors=True)


def end_groups(*, kill: Iterable[int], term: Iterable[int]) -> None:
    """Kill process groups; ask others to end, and kill those that have not after TERM_WAIT_S."""
    for group in kill:
        _signal(group, signal.SIGKILL)
    remaining = [group for group in term if _signal(group, signal.SIGTERM)]
    deadline_s = time.monotonic() + TERM_WAIT_S
    while remaining and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        remaining = [group for group in remaining if _signal(group, 0)]
    for group in remaining:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Whether the group was there (signal 0 only asks)."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
