"""What is counted while faults happen. Used by several threads."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from tieredkv.bench.faults.hiccups import Longest
from tieredkv.types import MissReason

COMPLAINTS_MAX: Final = 20


@dataclass(slots=True)
class Tally:
    """Tokens, and the worst of what engines saw.

    Of each request its tokens are counted as asked when it comes, and as hits or misses when it ends:
    what is lost between the two is `lost_tokens`.
    """

    asked_tokens: int = 0
    hit_tokens: int = 0
    missed_tokens: Counter[MissReason] = field(default_factory=Counter[MissReason])
    wrong_tokens: int = 0
    corrupt_accepted: int = 0
    failed_requests: int = 0
    requests: int = 0
    stored_chunks: int = 0
    calls: Longest = field(default_factory=Longest)
    """Of engines, which must not wait."""

    waits: Longest = field(default_factory=Longest)
    """Of requests, for their answers."""

    complaints: list[str] = field(default_factory=list[str])
    _lock: Lock = field(default_factory=Lock)

    @property
    def lost_tokens(self) -> int:
        return self.asked_tokens - self.hit_tokens - self.missed_tokens.total()

    def asked(self, tokens: int) -> None:
        """A request came."""
        with self._lock:
            self.requests += 1
            self.asked_tokens += tokens

    def ended(self, hits: int, misses: Mapping[MissReason, int]) -> None:
        """A request has its answer; in tokens."""
        with self._lock:
            self.hit_tokens += hits
            self.missed_tokens.update(misses)

    def wrong(self, tokens: int, *, damaged: bool, what: str) -> None:
        """Bytes that are not those of their key; `damaged`: of a chunk whose copies were damaged."""
        with self._lock:
            self.wrong_tokens += tokens
            self.corrupt_accepted += damaged
            self._complain(what)

    def failed(self, what: str) -> None:
        """A request that got no answer, or an error."""
        with self._lock:
            self.failed_requests += 1
            self._complain(what)

    def stored(self, chunks: int) -> None:
        with self._lock:
            self.stored_chunks += chunks

    def _complain(self, what: str) -> None:
        if len(self.complaints) < COMPLAINTS_MAX:
            self.complaints.append(what)
