"""How fast this engine computes prompt tokens, seen from the scheduler: when steps begin and when they end.

What the sidecar weighs a load against. vLLM may begin a step before the former one ended, but they end in
the order of their beginnings, and a step is computed from its beginning or the former one's end on. So
pauses between requests count for nothing.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from tieredkv.clock import Clock
from tieredkv.vllm_client.ledger import EngineLedger

PREFILL_TOKENS_MIN: Final = 64
"""Steps with fewer prompt tokens say more of the fixed cost of a step than of its tokens."""

DECODE_TOKENS_MAX: Final = 16
"""A request with no more tokens than this in a step may be decoding, several at a time if it speculates."""

STEPS_MAX: Final = 64
"""More steps than this are never computed at a time."""


class PrefillMeter:
    """Counts the prompt tokens of steps with many of them, and the seconds of those steps.

    `begin` and `end` are called once for each step. The first step of many tokens does not count: it
    compiles and warms up.
    """

    def __init__(self, ledger: EngineLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._begun: deque[tuple[float, int]] = deque()
        self._ended_s = 0.0
        self._warm = False

    def begin(self, scheduled: Iterable[int]) -> None:
        """A step was scheduled, with so many tokens of each of its requests."""
        if len(self._begun) == STEPS_MAX:
            self._begun.clear()  # their ends were not told: which end is whose is not known any more
        tokens = sum(count for count in scheduled if count > DECODE_TOKENS_MAX)
        self._begun.append((self._clock.now_s(), tokens))

    def end(self) -> None:
        """The result of the oldest step is there."""
        if not self._begun:
            return
        begun_s, tokens = self._begun.popleft()
        now_s = self._clock.now_s()
        if tokens >= PREFILL_TOKENS_MIN:
            if self._warm:
                self._ledger.prefill(tokens, now_s - max(begun_s, self._ended_s))
            self._warm = True
        self._ended_s = now_s
