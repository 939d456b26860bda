"""A pool in service: the brain's decisions applied to the slots, and told in the protocol's words.

Ownership: the loop's thread. No call waits. What a peer sent is checked here for shape only; the brain
judges its meaning.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from tieredkv import protocol
from tieredkv.brain.elsewhere import Nowhere
from tieredkv.brain.moves import JOB_ROWS_MAX, Fetch, Offer, PeerId
from tieredkv.brain.values import Progress, Pulled
from tieredkv.clock import Clock
from tieredkv.config import ColdConfig, HttpAddress, PolicyConfig
from tieredkv.errors import ProtocolError
from tieredkv.manager import AccessRecord, AdoptedChunk, ColdTier, Stepped, TierManager
from tieredkv.policy import make_policy
from tieredkv.policy.placement import Placement, Rate
from tieredkv.sidecar.callfile import CallFile
from tieredkv.sidecar.cluster.movements import ClusterMover
from tieredkv.sidecar.cluster.sharing import PoolSharing
from tieredkv.sidecar.mover.client import MoverProcess
from tieredkv.sidecar.prefetches import Prefetches
from tieredkv.sidecar.record import EpochPool
from tieredkv.sidecar.recorded import RecordedManager
from tieredkv.tiers.pool import Pool, Scan
from tieredkv.tiers.slots import Ints
from tieredkv.types import EngineId, Generation, Key, RequestId, SlotId

Slots = npt.NDArray[np.int32]

EVICTED_KEYS_MAX: Final = 65_536
"""Keys in one message, so that no frame comes near the bound."""

NOBODY: Final = -1

RECOMPUTE_GUESS_S: Final = 1e-3
"""Seconds that a token is believed to take until an engine has said: rather load than not, to begin with."""

QUEUED_MAX_S: Final = 60.0
"""How long what was loaded for a request may wait for it to be looked at; engines count its deadline from there."""

JOB_BYTES: Final = 16 << 20
"""Bytes of one movement: few enough that what a request waits for is not long behind it."""


@dataclass(frozen=True, slots=True)
class News:
    """What engines have to be told."""

    loaded: list[tuple[EngineId, protocol.Loaded]]
    evicted: list[protocol.Evicted]
    pulled: tuple[Pulled, ...] = ()
    """And other nodes: offers that ended."""


class Others(Protocol):
    """The other nodes, as a pool knows them; see tieredkv.sidecar.cluster.neighbours."""

    @property
    def node(self) -> str:
        """This node's name."""
        ...

    def was_reset(self, pool: "WarmPool") -> None: ...

    def usable(self, peer: PeerId) -> bool: ...

    def asked(self, peer: PeerId, answered: bool | None) -> bool: ...

    def offer(self, pool: "WarmPool", job: Offer) -> bool: ...

    def used(self, pool: "WarmPool", read: Mapping[PeerId, list[tuple[int, Key]]]) -> None: ...


class WarmPool:
    """One namespace's slots and its manager."""

    def __init__(
        self,
        made: EpochPool,
        arena: npt.NDArray[np.uint8],
        *,
        policy: PolicyConfig,
        cold: ColdConfig,
        engine_share_max: float,
        ghosts_max: int,
        clock: Clock,
        record: AccessRecord,
        calls: CallFile | None,
        mover: MoverProcess | None,
        changed: Callable[[], None],
        others: Others | None,
    ) -> None:
        """Without `mover` there is no cold tier, without `others` no other node. `changed` writes down what
        `made` says.
        """
        self._policy = policy
        self._cold = cold
        self._movers = mover
        self._changed = changed
        self.mover = mover.open_pool(made.record, made.resets) if mover is not None else None
        self._others = others
        self.sharing: PoolSharing | None = None
        self.cluster_mover: ClusterMover | None = None
        if others is not None:
            assert self.mover is not None
            self.sharing = PoolSharing(made, others.node, others.usable, self._free_pages)
            self.cluster_mover = ClusterMover(
                self.mover, self.sharing, clock, say=lambda job: others.offer(self, job), asked=others.asked
            )
        self._placement = Placement(recompute=Rate(RECOMPUTE_GUESS_S * made.record.geometry.chain_tokens))
        # The message that a request's loads belong to.
        self._seq_of: dict[tuple[EngineId, RequestId], int] = {}
        self._engine_share_max = engine_share_max
        self._ghosts_max = ghosts_max
        self._record = record
        self._calls = calls
        self.made = made
        self.slots = Pool(made.record, arena)
        self.populated = 0
        self.last_used_s = clock.now_s()
        self._clock = clock
        # Which connection asked for a lease: after a reconnect some leases may have nobody left.
        self._asked_by: npt.NDArray[np.int64] = np.full(made.record.slots, NOBODY, np.int64)
        self.manager = self._new_manager(1, 1)
        self._prefetches: Prefetches | None = None

    @property
    def resets(self) -> int:
        """How often the chunks were forgotten because of new weights."""
        return self.made.resets

    @property
    def epoch(self) -> int:
        """Names this life of the pool to the engines."""
        return self.made.epoch

    @property
    def namespace(self) -> bytes:
        """Fingerprint of all that makes its bytes interchangeable."""
        return self.made.record.namespace

    def adopt(self, extents: Ints) -> tuple[int, int]:
        """Take over what a former sidecar left in memory, which is populated in `extents`; its unsettled slots are
        quarantined. Numbers of chunks and of quarantined slots. Only before anything else. Raises VineyardError.

        Wherever something was written there may be a writer, or a generation that must not come again: without
        a prefault, and among pages, that is anywhere.
        """
        slots = min(self.slots.populated(extents), self.made.record.slots)
        touched = self.slots.touched(extents)
        scan = self.slots.scan(touched[touched < self.made.record.slots], resets=self.resets)
        pages = self.slots.scan(touched[touched >= self.made.record.slots], resets=self.resets)
        self.manager = self._new_manager(scan.next_generation, pages.next_generation)
        self.manager.adopt(_adopted(scan, 0))
        if self.mover is not None:
            self.manager.adopt_pages(_adopted(pages, self.made.record.slots))
        self.manager.quarantine(scan.unsettled.astype(np.int32), scan.unsettled_generations)
        self.populate(slots)
        return len(scan.ready) + len(pages.ready), len(scan.unsettled)

    def populate(self, slots: int) -> None:
        """The first `slots` slots have their pages."""
        assert self.populated <= slots <= self.made.record.slots
        self.manager.populate(self.populated, slots - self.populated)
        self.populated = slots

    def arrive(self, engine: EngineId, message: protocol.Arrive) -> protocol.Found:
        """Answer an arrival with what is resident, now pinned."""
        self.last_used_s = self._clock.now_s()
        found = self.manager.arrive(
            engine,
            RequestId(message.request),
            cast("list[Key]", message.chain),
            strides=self.made.record.geometry.group_strides,
            tokens=message.tokens,
            tenant=message.tenant,
            hints=message.hints,
            again=message.again,
        )
        name = (engine, RequestId(message.request))
        if found.coming or name in self._seq_of:
            self._seq_of[name] = message.seq
        return protocol.Found(
            message.request,
            message.seq,
            [slots.astype("<i4", copy=False).tobytes() for slots in found.slots],
            [generations.astype("<u8", copy=False).tobytes() for generations in found.generations],
            found.evicted,
            found.coming,
            self._cold.load_deadline_s if found.coming else 0.0,
        )

    def release(self, engine: EngineId, request: RequestId) -> None:
        """The request needs nothing any more."""
        self._seq_of.pop((engine, request), None)
        self.manager.release(engine, request)

    def keep_only(self, engine: EngineId, live: AbstractSet[RequestId]) -> None:
        """All other requests of the engine need nothing any more."""
        for name in [name for name in self._seq_of if name[0] == engine and name[1] not in live]:
            del self._seq_of[name]
        self.manager.keep_only(engine, live)

    def detach(self, engine: EngineId) -> None:
        """The engine is gone."""
        self.keep_only(engine, frozenset())
        self.manager.detach(engine)

    def computed(self, tokens: float, seconds: float) -> None:
        """An engine computed so many prompt tokens in that time."""
        self._placement.computed(tokens / self.made.record.geometry.chain_tokens, seconds)

    def step(self, *, idle: bool) -> News:
        """Let the brain go on; what engines have to be told."""
        stepped = self.manager.step(idle=idle)
        if self._others is not None:
            self._share(stepped, self._others)
            if idle and self.sharing is not None:
                self.sharing.tidy()
        own = self._prefetches
        told = [self._loaded(progress) for progress in stepped.progress if own is None or not own.take(progress)]
        return News(told, _evictions(stepped.evicted), stepped.pulled)

    def _share(self, stepped: Stepped, others: Others) -> None:
        """Tell other nodes what is here now, and what was read from them."""
        assert self.sharing is not None
        assert self.mover is not None
        sealed: set[int] = set()
        read: dict[PeerId, list[tuple[int, Key]]] = {}
        for loaded in stepped.loaded:
            job = loaded.job
            sealed.update(job.slots[row] for row in loaded.rows)
            if isinstance(job, Fetch):
                read.setdefault(job.peer, []).extend((job.groups[row], job.keys[row]) for row in loaded.rows)
        changes = self.manager.take_changes()
        if changes:
            held = [place for place, chunk in changes.items() if chunk is not None]
            generations = dict(zip(held, self.manager.place_generations(held), strict=True))
            self.sharing.changed(changes, generations, sealed)
        if read:
            others.used(self, read)
        self.sharing.sealed(*self.mover.take_sealed())
        batch = self.sharing.to_seal(self.mover.sealing)
        if batch is not None and self.mover.seal(*batch):
            self.sharing.sealing(batch[0])

    def _free_pages(self) -> int:
        return self.manager.free_pages

    def set_peer(self, peer: PeerId, address: HttpAddress, blob_ids: Sequence[int]) -> None:
        """Where to read another node's places of this namespace."""
        assert self.mover is not None
        assert self._movers is not None
        self._movers.set_peer(self.mover, peer, address.host, address.port, blob_ids)

    def drop_peer(self, peer: PeerId) -> None:
        """Another node's places cannot be read any more."""
        assert self.mover is not None
        assert self._movers is not None
        self._movers.drop_peer(self.mover, peer)
        self._placement.forget(peer)
        if self.cluster_mover is not None:
            self.cluster_mover.left(peer)

    def _loaded(self, progress: Progress) -> tuple[EngineId, protocol.Loaded]:
        name = (progress.engine, progress.request)
        message = protocol.Loaded(
            progress.request,
            self._seq_of[name],
            np.array(progress.groups, "<i4").tobytes(),
            np.array(progress.numbers, "<i4").tobytes(),
            progress.slots.astype("<i4", copy=False).tobytes(),
            progress.generations.astype("<u8", copy=False).tobytes(),
            progress.over,
        )
        if progress.over:
            del self._seq_of[name]
        return progress.engine, message

    def hint(self, message: protocol.Hint) -> bool:
        """Tell the policy what the application says of a session; whether that is known here."""
        return self.manager.hint(message.session, message.hints, tenant=message.tenant)

    def prefetch(self, message: protocol.Prefetch) -> int | None:
        """Load what a session used last; how many chunks will come, None when that is not known (any more)."""
        if self._prefetches is None:
            self._prefetches = Prefetches(self.manager, self.made.record.geometry.group_strides)
        return self._prefetches.begin(message.session, message.tenant)

    def lease(self, engine: EngineId, count: int, connection: int) -> tuple[protocol.Leased, list[protocol.Evicted]]:
        """Lease up to `count` slots to the engine, asked by `connection`; and what had to leave for them."""
        leased = self.manager.lease(engine, count)
        self.slots.start_tenancy(leased.slots.astype(np.int64), leased.generations)
        self._asked_by[leased.slots] = connection
        answer = protocol.Leased(
            leased.slots.astype("<i4", copy=False).tobytes(), leased.generations.astype("<u8", copy=False).tobytes()
        )
        return answer, _evictions(leased.evicted)

    def publish(self, engine: EngineId, message: protocol.Publish) -> None:
        """Make written chunks readable. Raises ProtocolError when the columns are of unequal length."""
        slots, positions = slots_of(message.slots), slots_of(message.positions)
        if not len(slots) == len(positions) == len(message.keys) == len(message.parents):
            raise ProtocolError("columns of unequal length in a publication")
        published = self.manager.publish(
            engine,
            message.group,
            cast("list[Key]", message.keys),
            cast("list[Key]", message.parents),
            positions,
            slots,
        )
        rows = published.rows
        if not len(rows):
            return
        listed: list[int] = rows.tolist()
        self.slots.publish(
            slots[rows].astype(np.int64),
            published.generations,
            group=message.group,
            keys=[message.keys[row] for row in listed],
            parents=[message.parents[row] for row in listed],
            positions=positions[rows].astype(np.int64),
            resets=self.resets,
        )

    def reset(self, resets: int) -> list[protocol.Evicted]:
        """Forget every chunk, also for a sidecar that adopts the pool later: the weights changed, so many times now."""
        assert resets > self.resets
        self.made = replace(self.made, resets=resets)
        forgotten = self.manager.reset()
        self.slots.invalidate(forgotten.slots.astype(np.int64))
        if self.mover is not None and self._movers is not None:
            self._movers.set_resets(self.mover, resets)
        if self.sharing is not None:
            self.sharing.reset(resets)
        if self._others is not None:
            self._others.was_reset(self)
        # Pages are not invalidated one by one: what they hold is of another count.
        self._changed()
        return _evictions(forgotten.evicted)

    def close(self) -> None:
        """Nothing of it is used any more."""
        if self.mover is not None and self._movers is not None:
            self._movers.close_pool(self.mover)

    def leases_asked_by(self, connection: int, but: Slots) -> Slots:
        """Slots leased at the request of `connection`, without `but`; some leases may have ended since."""
        mask = self._asked_by == connection
        mask[but] = False
        return np.flatnonzero(mask).astype(np.int32)

    def hand_over(self, slots: Slots, connection: int) -> None:
        """Leases of `slots` count as asked by `connection` from now on."""
        self._asked_by[slots] = connection

    def _cold_tier(self, next_generation: int) -> ColdTier | None:
        if self.mover is None:
            return None
        record = self.made.record
        chosen = make_policy(self._policy, max(1, record.pages))
        low = int(record.slots * self._cold.low_free)
        return ColdTier(
            pages=record.pages,
            policy=chosen.eviction,
            admission=chosen.admission,
            mover=self.cluster_mover or self.mover,
            elsewhere=self.sharing or Nowhere(),
            placement=self._placement,
            low_free=low,
            high_free=max(low, int(record.slots * self._cold.high_free)),
            deadline_s=QUEUED_MAX_S + self._cold.load_deadline_s,
            job_rows=max(1, min(JOB_ROWS_MAX, JOB_BYTES // record.slot_bytes)),
            next_generation=next_generation,
            ttl_s=self._cold.ttl_s,
        )

    def _new_manager(self, next_generation: int, next_page_generation: int) -> TierManager:
        record = self.made.record
        chosen = make_policy(self._policy, record.slots)
        if self._calls is None:
            manager = TierManager(
                slots=record.slots,
                groups=len(record.geometry.group_strides),
                policy=chosen.eviction,
                admission=chosen.admission,
                clock=self._clock,
                engine_share_max=self._engine_share_max,
                ghosts_max=self._ghosts_max,
                next_generation=next_generation,
                record=self._record,
                cold=self._cold_tier(next_page_generation),
            )
            if self._others is not None:
                manager.watch_changes()
            return manager
        assert self.mover is None, "calls are recorded without a cold tier only"
        return RecordedManager(
            self._calls,
            slots=record.slots,
            groups=len(record.geometry.group_strides),
            policy=chosen.eviction,
            admission=chosen.admission,
            policy_config=self._policy.model_dump(mode="json", by_alias=True),
            engine_share_max=self._engine_share_max,
            ghosts_max=self._ghosts_max,
            next_generation=next_generation,
            record=self._record,
        )

    def known(self, slots: Slots) -> Slots:
        """Those of `slots` that are slots of this pool."""
        return slots[(slots >= 0) & (slots < self.made.record.slots)]


def _adopted(scan: Scan, first: int) -> list[AdoptedChunk]:
    """What a scan found, numbered from the place `first`."""
    return [
        AdoptedChunk(
            SlotId(chunk.slot - first),
            Generation(chunk.generation),
            chunk.group,
            chunk.key,
            chunk.parent,
            chunk.position,
        )
        for chunk in scan.ready
    ]


def slots_of(raw: bytes) -> Slots:
    """Decode little-endian int32. Raises ProtocolError."""
    if len(raw) % 4:
        raise ProtocolError(f"{len(raw)} bytes are not int32 numbers")
    return np.frombuffer(raw, "<i4")


def _evictions(evicted: Mapping[int, list[Key]]) -> list[protocol.Evicted]:
    return [
        protocol.Evicted(group, cast("list[bytes]", keys[start : start + EVICTED_KEYS_MAX]))
        for group, keys in evicted.items()
        for start in range(0, len(keys), EVICTED_KEYS_MAX)
    ]
