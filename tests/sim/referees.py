"""What others' caches make of a trace: libcachesim's, and vLLM's own policy of its CPU offloading.

Each request is its chain; a hit is a block of the longest prefix that is there when the request comes.
libcachesim takes one reference at a time and knows no prefixes. It is fed each chain from its tail to its
head, so that the head is the youngest, as vLLM has it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tieredkv.sim.traces import Trace
from tieredkv.types import Key


class Referee(Protocol):
    """Somebody else's cache."""

    def __contains__(self, key: Key) -> bool: ...

    def refer(self, key: Key) -> bool:
        """One reference to `key`, which then is there. Whether it was before."""
        ...


class LibCacheSim:
    """One of libcachesim's caches, with keys of ours."""

    def __init__(self, make: Callable[..., Any], capacity: int, **parameters: int) -> None:
        import libcachesim

        self._cache = make(cache_size=capacity, hashpower=18, **parameters)
        self._request = libcachesim.Request()
        self._request.obj_size = 1
        self._names: dict[Key, int] = {}

    def __contains__(self, key: Key) -> bool:
        self._name(key)
        return self._cache.find(self._request, False) is not None

    def refer(self, key: Key) -> bool:
        """One reference to `key`, which then is there. Whether it was before."""
        self._name(key)
        return bool(self._cache.get(self._request))

    def _name(self, key: Key) -> None:
        self._request.obj_id = self._names.setdefault(key, len(self._names) + 1)


class PaperS3FIFO:
    """Algorithm 1 of the S3-FIFO paper, line by line. libcachesim's fills M too before its first eviction.

    Where the paper says that M is full, M holds more than its nine tenths here; and whether a key is a
    ghost is seen when it is missed, as in libcachesim.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._small: list[Key] = []
        self._main: list[Key] = []
        self._ghosts: list[Key] = []
        self._uses: dict[Key, int] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._uses

    def refer(self, key: Key) -> bool:
        """One reference to `key`, which then is there. Whether it was before."""
        if key in self._uses:
            self._uses[key] = min(self._uses[key] + 1, 3)
            return True
        was_ghost = key in self._ghosts
        if was_ghost:
            self._ghosts.remove(key)
        if len(self._uses) >= self._capacity:
            if len(self._small) >= 0.1 * self._capacity:
                self._evict_small()
            else:
                self._evict_main()
        self._uses[key] = 0
        (self._main if was_ghost else self._small).append(key)
        return False

    def _evict_small(self) -> None:
        while self._small:
            key = self._small.pop(0)
            if self._uses[key] <= 1:
                del self._uses[key]
                self._ghosts = [*self._ghosts, key][-int(0.9 * self._capacity) or len(self._ghosts) + 1 :]
                return
            self._uses[key] = 0
            self._main.append(key)
            if len(self._main) > 0.9 * self._capacity:
                self._evict_main()
                return
        self._evict_main()

    def _evict_main(self) -> None:
        while self._main:
            key = self._main.pop(0)
            if not self._uses[key]:
                del self._uses[key]
                return
            self._uses[key] -= 1
            self._main.append(key)
        self._evict_small()


def libcachesim_hits(trace: Trace, cache: Referee) -> list[int]:
    """Hits of each request, chains fed from their tails."""
    hits: list[int] = []
    for request in trace.requests:
        hits.append(prefix(request.keys, cache))
        for key in reversed(request.keys):
            cache.refer(key)
    return hits


def vllm_lru_hits(trace: Trace, capacity: int) -> list[int]:
    """Hits of each request with vLLM's LRUCachePolicy, called as its CPUOffloadingManager does.

    What is used is protected while room is made, all room for a request is made before it stores, and the
    whole request is one use when it finishes. vLLM does not store a request that is larger than the cache;
    here the head of it is stored.
    """
    from vllm.v1.kv_offload.cpu.policies.base import ChunkStatus
    from vllm.v1.kv_offload.cpu.policies.lru import LRUCachePolicy

    policy = LRUCachePolicy(capacity)
    context: Any = _Positions()
    hits: list[int] = []
    for request in trace.requests:
        keys = request.keys[:capacity]
        found = next((at for at, key in enumerate(keys) if policy.get(key) is None), len(keys))
        hits.append(found)
        missing = len(policy.chunks) + len(keys) - found - capacity
        if missing > 0:
            evicted = policy.evict(missing, set(keys[:found]))
            assert evicted is not None
        for key in keys[found:]:
            status = ChunkStatus(0)
            status.ref_cnt = 0
            policy.insert(key, status)
        policy.on_request_finished([keys], set(keys[found:]), set(keys[:found]), context)
    return hits


class _Positions:
    """A request whose keys come in their order."""

    def get_offload_key_position(self, key: Key) -> None:
        return None


def prefix(chain: Sequence[Key], resident: Any) -> int:
    """Length of the longest prefix of `chain` that is in `resident`."""
    return next((at for at, key in enumerate(chain) if key not in resident), len(chain))


def references(trace: Trace) -> Iterator[tuple[int, Key]]:
    """All references with the number of their request, chains from their tails."""
    for number, request in enumerate(trace.requests):
        for key in reversed(request.keys):
            yield number, key
