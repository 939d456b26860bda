"""What a mover has moved, and what it lost on the way: for metrics."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from tieredkv.metrics import FAILURES, MOVE_SECONDS, MOVED_BYTES
from tieredkv.sidecar.mover.messages import Loss


class Movement(Enum):
    """Kinds of jobs; label values of the metrics."""

    DEMOTE = "demote"  # own slots to own pages
    PROMOTE = "promote"  # own pages to own slots
    FETCH = "fetch"  # another node's places to own slots
    PULL = "pull"  # another node's slots to own pages
    SEAL = "seal"  # nothing moves: checksums of own slots


class Carrier(Protocol):
    """Who has traffic."""

    @property
    def traffic(self) -> Mapping["Movement", "Traffic"]: ...


@dataclass(slots=True)
class Traffic:
    """Of one movement, since the sidecar's start: chunks that arrived, and why others did not.

    `seconds` were spent on jobs, without waiting in a queue.
    """

    jobs: int = 0
    chunks: int = 0
    bytes: int = 0
    seconds: float = 0.0
    lost: Counter[Loss] = field(default_factory=Counter[Loss])

    def add(self, chunks: int, chunk_bytes: int, seconds: float) -> None:
        """A job ended, of which so many chunks arrived."""
        self.jobs += 1
        self.chunks += chunks
        self.bytes += chunks * chunk_bytes
        self.seconds += seconds


def moved(carrier: Carrier) -> Iterator[tuple[str, str, float]]:
    """Counters (metric, label value, amount) of what was moved and lost."""
    for movement, traffic in carrier.traffic.items():
        if traffic.jobs:
            yield MOVED_BYTES, movement.value, float(traffic.bytes)
            yield MOVE_SECONDS, movement.value, traffic.seconds
        for loss, count in traffic.lost.items():
            yield FAILURES, f"{movement.value}_{loss.value}", float(count)
