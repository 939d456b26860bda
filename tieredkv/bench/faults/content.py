"""What engines store: chains of keys, and for each key the only bytes that are right."""

from collections import deque
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt

from tieredkv.types import Geometry

CHAIN_TOKENS: Final = 16
NAMESPACE: Final = b"tieredkv: faults"
BODY_BYTES: Final = 16 * 1024
GEOMETRY: Final = Geometry(body_bytes=BODY_BYTES, chain_tokens=CHAIN_TOKENS, group_strides=(1,))
CHAINS_MAX: Final = 512
"""Chains that are remembered, to be asked for again."""

_COUNT: Final = np.arange(BODY_BYTES // 8, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def body_of(key: bytes) -> npt.NDArray[np.uint8]:
    """The bytes stored under a key of 32 bytes: others for each key, and at each place of a body."""
    words = np.resize(np.frombuffer(key, np.uint64), len(_COUNT))
    return (words ^ _COUNT).view(np.uint8)


@dataclass(slots=True, eq=False)
class Chain:
    """A prefix that was stored at the node `home`.

    `spared` are nodes whose slots hold it damaged: a node's own engines trust its memory and must not ask
    there any more; other nodes must find out.
    """

    keys: list[bytes]
    home: str
    spared: set[str] = field(default_factory=set[str])


class Chains:
    """All that was stored lately, of all engines. Used by several threads."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._chains: deque[Chain] = deque(maxlen=CHAINS_MAX)
        self._damaged: set[bytes] = set()
        self._lock = Lock()

    def make(self, home: str, length: int) -> Chain:
        """A new one; `add` it when it was stored."""
        with self._lock:
            raw = self._random.integers(0, 256, (length, 32), np.uint8)
        return Chain([row.tobytes() for row in raw], home)

    def add(self, chain: Chain) -> None:
        with self._lock:
            self._chains.append(chain)

    def lately(self, node: str, count: int) -> list[Chain]:
        """The last `count` chains that may be asked for at a node."""
        with self._lock:
            return [chain for chain in self._chains if node not in chain.spared][-count:]

    def damage(self, node: str, keys: set[bytes], *, slots: bool) -> list[Chain]:
        """Copies of these chunks were damaged at a node; the chains that they belong to."""
        with self._lock:
            self._damaged |= keys
            hurt = [chain for chain in self._chains if not keys.isdisjoint(chain.keys)]
            if slots:
                for chain in hurt:
                    chain.spared.add(node)
            return hurt

    def damaged(self, key: bytes) -> bool:
        """Whether some copy of it was damaged."""
        with self._lock:
            return key in self._damaged
