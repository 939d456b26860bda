"""What the scheduler's side remembers of one request, from its arrival to its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tieredkv.protocol import Found, Loaded
from tieredkv.types import Geometry, MissReason


class PrefixRequest(Protocol):
    """The part of vLLM's Request that is read here."""

    @property
    def request_id(self) -> str: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def block_hashes(self) -> Sequence[bytes]:
        """Hashes of the full blocks (of `tokens_per_hash` tokens), in order; grows while decoding."""
        ...

    @property
    def kv_transfer_params(self) -> Mapping[str, object] | None:
        """What the application said beside the prompt."""
        ...


@dataclass(slots=True)
class TokenLedger:
    """Where the prompt tokens of one admission come from; they add up to `asked`."""

    asked: int
    hot: int
    warm: int

    def misses(self, chunk_tokens: int, reason: MissReason, evicted_tokens: int) -> dict[MissReason, int]:
        """Why the other tokens were recomputed: `reason`, or evicted and absent when we simply had not got them."""
        served = self.hot + self.warm
        cacheable = max(served, (self.asked - 1) // chunk_tokens * chunk_tokens)
        missed = cacheable - served
        misses = {MissReason.SHORT: self.asked - cacheable}
        if reason is MissReason.ABSENT:
            misses[MissReason.EVICTED] = min(missed, evicted_tokens)
            misses[MissReason.ABSENT] = missed - misses[MissReason.EVICTED]
        else:
            misses[reason] = missed
        return misses


def _no_slots() -> npt.NDArray[np.int32]:
    return np.empty(0, dtype=np.int32)


def _no_generations() -> npt.NDArray[np.uint64]:
    return np.empty(0, dtype=np.uint64)


@dataclass(slots=True)
class RequestState:
    """Answers look-ups from memory, once the answer is there or was given up."""

    request: PrefixRequest
    chain: list[bytes]
    seq: int = 0
    deadline_s: float = 0.0
    answered_s: float = 0.0
    awaiting: bool = False
    """The sidecar's answer is on its way, and with it perhaps pins."""
    reason: MissReason = MissReason.ABSENT
    denied: bool = False
    told: bool = False
    """The sidecar was told that this request uses its chain."""
    pinned: bool = False
    loading: bool = False
    """More is coming from cold or from other nodes, until the deadline."""
    wait_s: float = 0.0
    """How long the scheduler waits for it, from when it first looks the request up: being queued costs nothing."""
    looked_up: bool = False
    loads: int = 0
    finished: bool = False
    rows: dict[bytes, int] = field(default_factory=dict[bytes, int])
    """Row of each chunk in `slots` and `generations`, by vLLM's key."""
    sizes: list[int] = field(default_factory=list[int])
    """Chunks of each group among the rows."""
    hits: dict[bytes, int] | None = None
    """Rows of the chunks that may be loaded; None while the answer is waited for."""
    slots: npt.NDArray[np.int32] = field(default_factory=_no_slots)
    generations: npt.NDArray[np.uint64] = field(default_factory=_no_generations)
    parts: list[Loaded] = field(default_factory=list[Loaded])
    """What was loaded and is not in its rows yet."""
    evicted: int = 0
    ledger: TokenLedger | None = None

    @property
    def settled(self) -> bool:
        """Look-ups have their answer."""
        return self.hits is not None

    def give_up(self, reason: MissReason) -> None:
        """Answer misses from now on."""
        self.loading = False
        self.parts = []
        self.reason = reason
        self.hits = {}

    def prepare(self, geometry: Geometry, suffixes: Sequence[bytes]) -> None:
        """Name all chunks as vLLM does, while the sidecar is looking; `suffixes[g]` completes a key of group g."""
        names: list[bytes] = []
        self.sizes = []
        for stride, suffix in zip(geometry.group_strides, suffixes, strict=True):
            of_group = [key + suffix for key in self.chain[stride - 1 :: stride]]
            self.sizes.append(len(of_group))
            names += of_group
        self.rows = dict(zip(names, range(len(names)), strict=True))

    def take_answer(self, found: Found) -> None:
        """Note the sidecar's slots; hits when nothing more is coming. `prepare` came before, with this chain."""
        sizes = self.sizes
        assert len(found.slots) == len(found.generations) == len(sizes), "one array per group"
        self.slots = np.full(sum(sizes), -1, dtype=np.int32)
        self.generations = np.zeros(sum(sizes), dtype=np.uint64)
        start = 0
        for slots, generations, size in zip(found.slots, found.generations, sizes, strict=True):
            part = np.frombuffer(slots, dtype="<i4")
            assert len(part) <= size, "more slots than chunks"
            self.slots[start : start + len(part)] = part
            self.generations[start : start + len(part)] = np.frombuffer(generations, dtype="<u8")
            start += size
        self.parts = []
        self.evicted = found.evicted
        self.loading = found.coming > 0
        self.pinned = self.loading or bool((self.slots >= 0).any())
        # Who asked anew goes on with what is there.
        if not self.loading or self.hits is not None:
            self.settle(MissReason.ABSENT)

    def take_loaded(self, loaded: Loaded) -> None:
        """More came; hits when it is all, or when some were waited for already.

        Of a long prefix it comes in many parts, which are put in their places together.
        """
        assert len(loaded.groups) == len(loaded.numbers) == len(loaded.slots), "columns of unequal length"
        assert 2 * len(loaded.slots) == len(loaded.generations), "columns of unequal length"
        assert len(self.parts) <= len(self.rows), "more parts than chunks"
        self.parts.append(loaded)
        self.loading = not loaded.over
        if loaded.over or self.hits is not None:
            self.settle(MissReason.ABSENT)

    def _place_parts(self) -> None:
        parts, self.parts = self.parts, []
        if not parts:
            return
        groups = np.frombuffer(b"".join(part.groups for part in parts), "<i4")
        numbers = np.frombuffer(b"".join(part.numbers for part in parts), "<i4")
        sizes = np.array(self.sizes)
        assert not len(groups) or (groups.min() >= 0 and groups.max() < len(sizes)), "a group that is not there"
        assert (numbers >= 0).all(), "a number below 0"
        assert (numbers < sizes[groups]).all(), "more slots than chunks"
        rows = (np.cumsum(sizes) - sizes)[groups] + numbers
        self.slots[rows] = np.frombuffer(b"".join(part.slots for part in parts), "<i4")
        self.generations[rows] = np.frombuffer(b"".join(part.generations for part in parts), "<u8")

    def settle(self, reason: MissReason) -> None:
        """What is there now are the hits; `reason` tells why the rest is not."""
        self._place_parts()
        present = self.slots >= 0
        count = int(np.count_nonzero(present))
        if count == len(present):
            self.hits = self.rows
        elif present[:count].all():
            self.hits = dict(islice(self.rows.items(), count))
        else:
            self.hits = dict(compress(self.rows.items(), present.tolist()))
        self.reason = reason
