"""What a scheduler tells its sidecar unasked: its counters, which requests live, and a reset until it is proven."""

from collections.abc import Iterable
from typing import Final

from tieredkv.clock import Clock
from tieredkv.protocol import Ledger as LedgerReport
from tieredkv.protocol import Live, PoolState, Reset
from tieredkv.vllm_client.client import EngineClient
from tieredkv.vllm_client.ledger import EngineLedger

REPORT_EVERY_S: Final = 1.0
LIVE_EVERY_S: Final = 10.0


class Reports:
    """Each report is answered with a PoolState, in order; a reset is repeated until such an answer proves it."""

    def __init__(self, client: EngineClient, ledger: EngineLedger, clock: Clock) -> None:
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self._due = 0
        self._proven_at = 0
        self._report_at_s = 0.0
        self._live_at_s = 0.0
        self._owed = False

    @property
    def reset_owed(self) -> bool:
        """The sidecar may still find what must not be served any more."""
        return self._owed

    def reset(self) -> None:
        """The sidecar is to forget everything, now or as soon as there is one."""
        self._owed = True
        if self._client.enabled:
            self._send_reset()

    def attached(self) -> None:
        """A sidecar serves us, perhaps another one than before."""
        if self._owed:
            self._send_reset()

    def lost(self) -> None:
        """The connection is gone, and what was to be answered on it."""
        self._due = self._proven_at = 0

    def answered(self, state: PoolState) -> None:
        """The answer to the oldest report that has none yet."""
        self._ledger.slots(state.slots)
        self._due -= 1
        self._proven_at -= 1
        if self._owed and self._proven_at == 0:
            self._owed = False

    def counters(self, *, at_once: bool = False) -> None:
        """Send what was counted, if it is time or `at_once`; what cannot be sent is counted on."""
        now_s = self._clock.now_s()
        if now_s < self._report_at_s and not at_once:
            return
        self._report_at_s = now_s + REPORT_EVERY_S
        counters = self._ledger.take_report()
        if counters and not self._send(counters):
            self._ledger.put_back(counters)

    def live(self, requests: Iterable[str]) -> None:
        """If it is time: the names of the requests that may hold pins. The sidecar releases all others."""
        now_s = self._clock.now_s()
        if now_s >= self._live_at_s:
            self._live_at_s = now_s + LIVE_EVERY_S
            self._client.send(Live(list(requests)))

    def _send_reset(self) -> None:
        """Messages are answered in order: a report sent behind the reset proves, by its answer, that it was done."""
        self._client.send(Reset())
        self._send({})
        self._proven_at = self._due

    def _send(self, counters: dict[str, dict[str, float]]) -> bool:
        sent = self._client.send(LedgerReport(counters))
        self._due += sent
        return sent
