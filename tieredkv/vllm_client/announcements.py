"""vLLM's KV events of the warm tier: which chunks this engine stored, and which of those are gone."""

from collections.abc import Iterable

from tieredkv.vllm_client.compat import Medium, OffloadingEvent, OffloadKey


class Announcements:
    """Names of chunks are vLLM's keys. Who did not hear that a chunk was stored does not hear that it is gone."""

    def __init__(self, *, wanted: bool) -> None:
        """Unless `wanted`, nothing is announced, and so nothing is ever gone."""
        self._wanted = wanted
        self._announced: set[OffloadKey] = set()
        self._events: list[OffloadingEvent] = []

    def stored(self, keys: list[OffloadKey]) -> None:
        """These were published."""
        if not self._wanted:
            return
        self._announced.update(keys)
        self._events.append(OffloadingEvent(keys=keys, medium=Medium.CPU, removed=False))

    def gone(self, keys: Iterable[OffloadKey]) -> None:
        """These were evicted."""
        gone = [key for key in keys if key in self._announced]
        if gone:
            self._announced.difference_update(gone)
            self._events.append(OffloadingEvent(keys=gone, medium=Medium.CPU, removed=True))

    def all_gone(self) -> None:
        """The pool was emptied, or is another one."""
        self.gone(list(self._announced))

    def take(self) -> list[OffloadingEvent]:
        """Events since the last call."""
        events, self._events = self._events, []
        return events
