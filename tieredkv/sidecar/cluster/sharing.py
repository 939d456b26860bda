"""What one pool shares with the pools of its namespace on other nodes: own holdings out, theirs in.

Ownership: the loop's thread. The brain asks through `Elsewhere`, which answers from memory. A slot is told
to others when its checksum is there; a page and what came from another place have theirs already.
"""

import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from tieredkv.brain.elsewhere import Copy
from tieredkv.brain.holdings import Follower, Holdings
from tieredkv.brain.moves import PeerId
from tieredkv.brain.peer_index import PeerIndex, fingerprints
from tieredkv.errors import ProtocolError
from tieredkv.sidecar.cluster import columns
from tieredkv.sidecar.cluster.peer_protocol import Changes, PoolNews
from tieredkv.sidecar.record import EpochPool
from tieredkv.sidecar.runs import runs
from tieredkv.tiers.slots import Generations, Ints
from tieredkv.types import Key

CHANGES_ROWS_MAX: Final = 2048
"""Of one message: a peer's loop takes a few milliseconds for it."""

SEAL_ROWS_MAX: Final = 256
"""Slots that are sealed at a time: whoever has something else to move waits for one of them at most."""

FULL_WEIGHT: Final = 0.05
"""What a full node counts against an empty one of its size: it can still replace what is worth less."""

Chunk = tuple[int, Key]


@dataclass(slots=True)
class _Sharer:
    """The pool of another node."""

    news: PoolNews
    weight_seed: int
    number: int = 0
    pages_held: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    @property
    def places(self) -> int:
        return self.news.slots + self.news.pages

    def weight(self) -> float:
        """For rendezvous: its free pages."""
        return _weight(self.news.pages, self.news.pages - int(np.count_nonzero(self.pages_held)))


class PoolSharing:
    """Implements `Elsewhere` for one pool."""

    def __init__(
        self, made: EpochPool, node: str, usable: Callable[[PeerId], bool], free_pages: Callable[[], int]
    ) -> None:
        """`usable` says whether a node is worth asking now."""
        self._made = made
        self._own_seed = _seed(node)
        self._ids = runs(made.record.blob_ids)
        self._usable = usable
        self._free_pages = free_pages
        self._holdings = Holdings(made.record.places)
        self._index = PeerIndex(secrets.randbits(64))
        self._sharers: dict[PeerId, _Sharer] = {}
        self._resets = made.resets
        # Slots whose checksum is to be taken or being taken, in which tenancy, and what they hold.
        self._unsealed: dict[int, tuple[int, Chunk]] = {}
        self._to_seal: dict[int, None] = {}

    # --- own places ---------------------------------------------------------------------------------

    def news(self) -> PoolNews:
        """What other nodes have to know of the pool."""
        record = self._made.record
        return PoolNews(
            namespace=record.namespace,
            description=dict(record.description),
            body_bytes=record.geometry.body_bytes,
            chain_tokens=record.geometry.chain_tokens,
            group_strides=record.geometry.group_strides,
            epoch=self._made.epoch,
            slots=record.slots,
            pages=record.pages,
            slot_bytes=record.slot_bytes,
            ids=self._ids,
            resets=self._resets,
        )

    def changed(
        self, changes: Mapping[int, Chunk | None], generations: Mapping[int, int], sealed: Collection[int]
    ) -> None:
        """Places hold something else now, in these tenancies; `sealed` slots have their checksum already."""
        gone = [place for place, chunk in changes.items() if chunk is None]
        for place in gone:
            self._unsealed.pop(place, None)
            self._to_seal.pop(place, None)
        ready: dict[int, Chunk] = {}
        for place, chunk in changes.items():
            if chunk is None:
                continue
            if place >= self._made.record.slots or place in sealed:
                ready[place] = chunk
                self._unsealed.pop(place, None)
            else:
                gone.append(place)
                self._unsealed[place] = (generations[place], chunk)
                self._to_seal[place] = None
        if gone:
            self._holdings.drop(np.array(gone, np.int64))
        self._hold(ready, [generations[place] for place in ready])

    def to_seal(self, sealing: int) -> tuple[Ints, Generations] | None:
        """Slots whose checksum shall be taken next, when none or few are being taken (`sealing`)."""
        if not sealing and not self._to_seal and self._unsealed:
            # The mover died with them.
            self._to_seal.update(dict.fromkeys(self._unsealed))
        if not self._to_seal or sealing >= SEAL_ROWS_MAX:
            return None
        places = [place for place, _ in zip(self._to_seal, range(SEAL_ROWS_MAX), strict=False)]
        return np.array(places, np.int64), np.array([self._unsealed[place][0] for place in places], np.uint64)

    def sealing(self, places: Ints) -> None:
        """The mover has taken these over."""
        for place in places.tolist():
            self._to_seal.pop(place, None)

    def sealed(self, places: Ints, generations: Generations) -> None:
        """These slots have their checksum now."""
        ready: dict[int, Chunk] = {}
        tenancies: list[int] = []
        for place, generation in zip(places.tolist(), generations.tolist(), strict=True):
            awaited = self._unsealed.get(place)
            if awaited is not None and awaited[0] == generation:
                ready[place] = awaited[1]
                tenancies.append(generation)
                del self._unsealed[place]
        self._hold(ready, tenancies)

    def offerable(self, slots: Sequence[int], generations: Sequence[int]) -> bool:
        """Whether other nodes can read all of these now."""
        held = self._holdings.generations[np.array(slots, np.int64)]
        return bool((held == np.array(generations, np.uint64)).all())

    def follow(self) -> Follower:
        """A new reader of what is held here."""
        return self._holdings.follow()

    def unfollow(self, follower: Follower) -> None:
        """It reads no more."""
        self._holdings.leave(follower)

    def reset(self, resets: int) -> None:
        """The weights changed, so many times now: what others hold for former ones is not found any more."""
        self._resets = resets

    # --- other nodes --------------------------------------------------------------------------------

    def join(self, peer: PeerId, node: str, news: PoolNews) -> None:
        """A node has such a pool; what it holds, it will tell."""
        self._index.follow(peer, news.slots + news.pages)
        self._sharers[peer] = _Sharer(news, _seed(node), pages_held=np.zeros(news.pages, np.bool_))

    def renew(self, peer: PeerId, news: PoolNews) -> None:
        """It said again what it is, with other resets. Raises ProtocolError when anything else is different."""
        sharer = self._sharers[peer]
        if msgspec.structs.replace(news, resets=sharer.news.resets) != sharer.news:
            # What is kept of its places fits the pool that it told of first.
            raise ProtocolError("PoolNews: another pool of the same epoch and blobs")
        sharer.news = news

    def leave(self, peer: PeerId) -> None:
        """It has no such pool any more, or cannot be reached."""
        if self._sharers.pop(peer, None) is not None:
            self._index.forget(peer)

    def knows(self, peer: PeerId) -> PoolNews | None:
        """What that node said of its pool."""
        sharer = self._sharers.get(peer)
        return sharer.news if sharer is not None else None

    def change(self, peer: PeerId, message: Changes) -> None:
        """A node's places hold something else now. Raises ProtocolError."""
        sharer = self._sharers.get(peer)
        if sharer is None or message.epoch != sharer.news.epoch:
            return  # of a pool that we share nothing with
        if message.number and not sharer.number:
            return  # of what it told before it was asked to begin anew
        if message.number != sharer.number:
            raise ProtocolError(f"Changes: number {message.number} instead of {sharer.number}")
        sharer.number += 1
        told = columns.changes(message, sharer.places)
        pages = told.places >= sharer.news.slots
        sharer.pages_held[told.places[pages] - sharer.news.slots] = told.fingerprints[pages] != 0
        self._index.apply(peer, told.places, told.fingerprints, told.generations)

    def tidy(self) -> None:
        """A good moment for what may wait."""
        self._index.tidy()

    def document(self) -> dict[str, object]:
        """For `tieredkv status`."""
        return {
            "held": len(self._holdings),
            "unsealed": len(self._unsealed),
            "index_entries": self._index.entries,
            "index_bytes": self._index.size_bytes,
            "peers": len(self._sharers),
        }

    # --- Elsewhere ----------------------------------------------------------------------------------

    def find(self, group: int, keys: Sequence[Key]) -> list[Copy | None]:
        usable = self._mask()
        if usable is None or not keys:
            return [None] * len(keys)
        held = self._index.find(fingerprints(keys, group), usable)
        columns_of = zip(held.peers.tolist(), held.places.tolist(), held.generations.tolist(), strict=True)
        return [Copy(PeerId(peer), place, generation) if peer >= 0 else None for peer, place, generation in columns_of]

    def keeps(self, group: int, keys: Sequence[Key]) -> list[bool]:
        usable = self._mask()
        if usable is None or not keys:
            return [False] * len(keys)
        firsts = np.zeros(len(usable), np.int64)
        for peer in np.flatnonzero(usable).tolist():
            firsts[peer] = self._sharers[PeerId(peer)].news.slots
        held = self._index.find(fingerprints(keys, group), usable, firsts)
        return [peer >= 0 for peer in held.peers.tolist()]

    def distrust(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            sharer = self._sharers.get(copy.peer)
            if sharer is not None and copy.place < sharer.places:
                nothing = np.zeros(1, np.uint64)
                self._index.apply(copy.peer, np.array([copy.place], np.int64), nothing, nothing)

    def home(self, key: Key) -> PeerId | None:
        """By rendezvous hashing (Thaler and Ravishankar 1996), weighted as by Schindelhauer and Schomaker 2005."""
        best: PeerId | None = None
        pages = self._made.record.pages
        score = _score(key, self._own_seed, _weight(pages, self._free_pages())) if pages else math.inf
        for peer, sharer in self._sharers.items():
            if sharer.news.pages and self._serves(peer, sharer):
                other = _score(key, sharer.weight_seed, sharer.weight())
                if other < score:
                    best, score = peer, other
        return best

    # --- parts --------------------------------------------------------------------------------------

    def _serves(self, peer: PeerId, sharer: _Sharer) -> bool:
        return sharer.news.resets == self._resets and self._usable(peer)

    def _mask(self) -> npt.NDArray[np.bool_] | None:
        """By PeerId whom to ask; None when there is nobody."""
        serving = [peer for peer, sharer in self._sharers.items() if self._serves(peer, sharer)]
        if not serving:
            return None
        mask = np.zeros(max(serving) + 1, np.bool_)
        mask[serving] = True
        return mask

    def _hold(self, chunks: Mapping[int, Chunk], generations: Sequence[int]) -> None:
        if not chunks:
            return
        places = np.fromiter(chunks, np.int64, len(chunks))
        marks = np.zeros(len(chunks), np.uint64)
        for group in sorted({group for group, _ in chunks.values()}):
            own = [(row, key) for row, (other, key) in enumerate(chunks.values()) if other == group]
            marks[[row for row, _ in own]] = fingerprints([key for _, key in own], group)
        self._holdings.hold(places, marks, np.array(generations, np.uint64))


def _weight(pages: int, free: int) -> float:
    return max(float(free), FULL_WEIGHT * pages)


def _seed(node: str) -> int:
    """Of a node's name; the same on every node."""
    return int(fingerprints([Key(node.encode().ljust(16, b"\0")[:64])], 0)[0])


def _score(key: Key, seed: int, weight: float) -> float:
    """The smallest wins; each node's share is as its weight."""
    mixed = int(fingerprints([Key(seed.to_bytes(8, "little") + key[:56])], 0)[0])
    return -math.log((mixed + 1) / 2**64) / weight if weight > 0 else math.inf
