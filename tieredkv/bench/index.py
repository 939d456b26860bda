"""`tieredkv bench index`: a look-up among all that the other nodes hold, and following what they change.

A look-up is what an arrival asks: from the keys as a message brings them to who holds them and where;
four of five are held by somebody. Every round asks for other keys, so that no cache knows them. A
dictionary from key to holder, in turns with ours, is the floor: it is what a look-up would be without any
bound on memory. Following is what a peer's changes cost, in batches as they come over the network: half
of the places get another chunk, a quarter lose theirs and a quarter, which were empty, get one.
"""

import gc
import sys
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tieredkv.bench.machine import describe_machine
from tieredkv.brain.fingerprint_table import Fingerprints, Rows
from tieredkv.brain.moves import PeerId
from tieredkv.brain.peer_index import PeerIndex, fingerprints
from tieredkv.types import Key

PEERS: Final = 8
ENTRIES: Final = 1_000_000
KEYS: Final = 1000
HELD: Final = 0.8
ROUNDS: Final = 300
WARM_UP_ROUNDS: Final = 20
CHANGES: Final = 100_000
BATCH: Final = 4096
KEY_BYTES: Final = 32
EMPTY_PLACES: Final = 0.25
"""Of a peer's places, as many as hold something."""

Holder = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Result:
    """What `--json` writes. Times of one look-up of `keys` keys; bytes and microseconds for one entry.

    `slowest_apply_ms` is the longest call that took over up to `batch` changes, filling the index included.
    """

    machine: dict[str, str]
    entries: int
    keys: int
    peers: int
    p50_ms: float
    p99_ms: float
    bytes_per_entry: float
    follow_us_per_change: float
    changes: int
    batch: int
    slowest_apply_ms: float
    dict_p50_ms: float
    dict_p99_ms: float
    dict_bytes_per_entry: float
    dict_follow_us_per_change: float


def measure(console: Console, *, entries: int = ENTRIES, keys: int = KEYS, changes: int = CHANGES) -> Result:
    """Fill both, look up in turns, follow; some ten seconds with a million entries."""
    bed = _TestBed(entries)
    ours: list[float] = []
    theirs: list[float] = []
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        bed.fill()
        for number in track(range(WARM_UP_ROUNDS + ROUNDS), "look-ups", console=console):
            asked = bed.keys(keys)
            ours_s, theirs_s = bed.ask_in_turn(asked, ours_first=bool(number % 2))
            if number >= WARM_UP_ROUNDS:
                ours.append(ours_s)
                theirs.append(theirs_s)
        size_bytes = bed.index.size_bytes
        dict_bytes = bed.dict_bytes()
        follow_s, dict_follow_s = bed.follow(changes)
        bed.index.check()
    finally:
        gc.enable()
        gc.unfreeze()
    return Result(
        machine=describe_machine(),
        entries=entries,
        keys=keys,
        peers=PEERS,
        p50_ms=median(ours) * 1e3,
        p99_ms=quantiles(ours, n=100)[98] * 1e3,
        bytes_per_entry=size_bytes / entries,
        follow_us_per_change=follow_s / changes * 1e6,
        changes=changes,
        batch=BATCH,
        slowest_apply_ms=bed.slowest_apply_s * 1e3,
        dict_p50_ms=median(theirs) * 1e3,
        dict_p99_ms=quantiles(theirs, n=100)[98] * 1e3,
        dict_bytes_per_entry=dict_bytes / entries,
        dict_follow_us_per_change=dict_follow_s / changes * 1e6,
    )


def report(result: Result, console: Console) -> None:
    """Print it for a person."""
    table = Table(title=f"{result.keys} keys against {result.entries:,} entries of {result.peers} peers")
    for column in ("", "p50 ms", "p99 ms", "bytes per entry", "follow, us per change"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(
        "index",
        f"{result.p50_ms:.3f}",
        f"{result.p99_ms:.3f}",
        f"{result.bytes_per_entry:.1f}",
        f"{result.follow_us_per_change:.2f}",
    )
    table.add_row(
        "dict (floor)",
        f"{result.dict_p50_ms:.3f}",
        f"{result.dict_p99_ms:.3f}",
        f"{result.dict_bytes_per_entry:.1f}",
        f"{result.dict_follow_us_per_change:.2f}",
    )
    console.print(table)
    console.print(f"longest call with up to {result.batch} changes: {result.slowest_apply_ms:.1f} ms")


def to_json(result: Result) -> dict[str, object]:
    """Plain data for `--json`."""
    return asdict(result)


class _TestBed:
    """The same holdings in an index and in a dictionary."""

    def __init__(self, entries: int) -> None:
        self.slowest_apply_s = 0.0
        self._random = np.random.default_rng(1)
        self.index = PeerIndex(int(self._random.integers(0, 2**64, dtype=np.uint64)))
        self._held = self._fresh_keys(entries)
        share = -(-entries // PEERS)
        self._places = int(share * (1 + EMPTY_PLACES)) + 1
        self._rows = {PeerId(peer): self._held[peer * share : (peer + 1) * share] for peer in range(PEERS)}
        self._dict: dict[Key, Holder] = {}

    def fill(self) -> None:
        """As each peer's snapshot would."""
        for peer, keys in self._rows.items():
            self.index.follow(peer, self._places)
            for first in range(0, len(keys), BATCH):
                part = keys[first : first + BATCH]
                places = np.arange(first, first + len(part))
                self._apply(peer, places, fingerprints(part, 0))
                self._dict.update((key, (peer, place, 1)) for key, place in zip(part, places.tolist(), strict=True))

    def keys(self, count: int) -> list[Key]:
        """Keys of a request, as new objects like those that a message brings."""
        held = int(count * HELD) if self._held else 0
        rows: list[int] = self._random.integers(0, len(self._held), held).tolist()
        return [Key(bytes(bytearray(key))) for key in map(self._held.__getitem__, rows)] + self._fresh_keys(
            count - held
        )

    def ask_in_turn(self, keys: list[Key], *, ours_first: bool) -> tuple[float, float]:
        """Seconds of our look-up and of the dictionary's."""
        copies = [Key(bytes(bytearray(key))) for key in keys]
        if ours_first:
            ours_s = self._ask_index(keys)
            return ours_s, self._ask_dict(copies)
        theirs_s = self._ask_dict(copies)
        return self._ask_index(keys), theirs_s

    def follow(self, changes: int) -> tuple[float, float]:
        """Seconds that `changes` changes of one peer after another take, ours and the dictionary's."""
        ours_s = theirs_s = 0.0
        done = 0
        peer = 0
        while done < changes:
            count = min(BATCH, changes - done)
            ours, theirs = self._follow_batch(PeerId(peer % PEERS), count)
            ours_s, theirs_s = ours_s + ours, theirs_s + theirs
            done += count
            peer += 1
        return ours_s, theirs_s

    def dict_bytes(self) -> float:
        """Memory of the dictionary with its keys and values (small numbers are nobody's)."""
        if not self._dict:
            return 0.0
        key, holder = next(iter(self._dict.items()))
        each = sys.getsizeof(key) + sys.getsizeof(holder) + sys.getsizeof(1 << 20)
        return float(sys.getsizeof(self._dict) + each * len(self._dict))

    def _follow_batch(self, peer: PeerId, count: int) -> tuple[float, float]:
        keys = self._rows[peer]
        lost, gained = count // 4, count // 4
        held = self._random.choice(len(keys), min(count - gained, len(keys)), replace=False)
        empty = self._random.choice(np.arange(len(keys), self._places), min(gained, self._places - len(keys)))
        fresh = self._fresh_keys(len(held) + len(empty))
        told = fingerprints(fresh, 0)
        told[:lost] = 0
        places = np.concatenate((held, empty))
        ours_s = self._apply(peer, places, told)
        rows: list[int] = held.tolist()
        left = [keys[row] for row in rows]
        start_s = perf_counter()
        for key in left:
            self._dict.pop(key, None)
        for key, place in zip(fresh[lost:], places[lost:].tolist(), strict=True):
            self._dict[key] = (peer, place, 2)
        return ours_s, perf_counter() - start_s

    def _apply(self, peer: PeerId, places: Rows, told: Fingerprints) -> float:
        generations = np.full(len(places), 2, np.uint64)
        start_s = perf_counter()
        self.index.apply(peer, places, told, generations)
        taken_s = perf_counter() - start_s
        self.slowest_apply_s = max(self.slowest_apply_s, taken_s)
        return taken_s

    def _ask_index(self, keys: list[Key]) -> float:
        usable = np.ones(PEERS, np.bool_)
        start_s = perf_counter()
        self.index.find(fingerprints(keys, 0), usable)
        return perf_counter() - start_s

    def _ask_dict(self, keys: list[Key]) -> float:
        start_s = perf_counter()
        for key in keys:
            self._dict.get(key)
        return perf_counter() - start_s

    def _fresh_keys(self, count: int) -> list[Key]:
        raw = self._random.bytes(count * KEY_BYTES)
        return [Key(raw[at : at + KEY_BYTES]) for at in range(0, len(raw), KEY_BYTES)]
