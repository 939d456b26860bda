"""The scheduler's view of the warm tier, in vLLM's terms.

Ownership: the scheduler's thread only. Look-ups and stores are answered from memory: what the sidecar
said of this request at its arrival, and slots leased ahead. Nothing here waits. One message per request
asks, one per finished store publishes.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from msgspec.structs import replace

from tieredkv.clock import Clock
from tieredkv.protocol import (
    Arrive,
    Evicted,
    Found,
    Hello,
    Lease,
    Leased,
    Loaded,
    PoolState,
    Release,
    Return,
)
from tieredkv.types import Geometry, MissReason
from tieredkv.vllm_client.announcements import Announcements
from tieredkv.vllm_client.client import EngineClient, Handlers
from tieredkv.vllm_client.compat import (
    LoadStoreSpec,
    LookupResult,
    OffloadingConnectorStats,
    OffloadingEvent,
    OffloadingManager,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    group_suffix,
    host_source,
)
from tieredkv.vllm_client.guard import guarded
from tieredkv.vllm_client.ledger import EngineLedger
from tieredkv.vllm_client.prefill import PrefillMeter
from tieredkv.vllm_client.reports import Reports
from tieredkv.vllm_client.request_hints import request_hints
from tieredkv.vllm_client.request_state import PrefixRequest, RequestState, TokenLedger
from tieredkv.vllm_client.reserve import SlotReserve
from tieredkv.vllm_client.slotspec import SlotLoadStoreSpec
from tieredkv.vllm_client.stores import StoreBatch, StoreBook

logger = logging.getLogger("tieredkv.manager")

MISS: Final = LookupResult.MISS
HIT: Final = LookupResult.HIT
RETRY: Final = LookupResult.RETRY
HOST: Final = host_source()
ATTACH_POLL_S: Final = 0.02
REFRESH_AFTER_S: Final = 1.0
LOAD_WAIT_MAX_S: Final = 60.0
"""No sidecar makes a request wait for longer."""


@dataclass(frozen=True, slots=True)
class ManagerSettings:
    """What the manager needs to know of configuration; times in seconds."""

    lookup_deadline_s: float
    lease_chunks: int
    """Slots to lease ahead."""
    tokens_per_hash: int
    group_ids: tuple[int, ...]
    wants_events: bool = False
    asks_at_arrival: bool = True
    """Else when the scheduler looks at the request for the first time."""
    lease_share_max: float = 1.0
    """What is leased ahead is at most this part of the pool, but for the least that a reserve holds."""


def _no_slots() -> LoadStoreSpec:
    """Epoch 0 is never attached: a job with these slots fails, and its request recomputes."""
    return SlotLoadStoreSpec(0, np.empty(0, dtype=np.int32), np.empty(0, dtype=np.uint64))


def _nothing_to_store() -> PrepareStoreOutput | None:
    return PrepareStoreOutput(keys_to_store=[], store_spec=_no_slots(), evicted_keys=[])


class TieredKVManager(OffloadingManager):
    """Implements vLLM's OffloadingManager over an EngineClient."""

    def __init__(
        self,
        geometry: Geometry,
        settings: ManagerSettings,
        hello: Callable[[], Hello],
        connect: Callable[[Handlers], EngineClient],
        ledger: EngineLedger,
        clock: Clock,
    ) -> None:
        self.broken = False
        self.prefill = PrefillMeter(ledger, clock)
        self._geometry = geometry
        self._settings = settings
        self._hello = hello
        self._clock = clock
        self._ledger = ledger
        self._suffixes = [group_suffix(group_id) for group_id in settings.group_ids]
        self._states: dict[str, RequestState] = {}
        self._pending: dict[str, RequestState] = {}
        self._stores = StoreBook(geometry.chain_tokens, self._suffixes)
        self._reserve = SlotReserve(settings.lease_chunks, settings.lease_share_max)
        self._announcements = Announcements(wanted=settings.wants_events)
        self._epoch = 0
        self._suspect = False
        self._seq = 0
        self._unsaid: list[tuple[StoreBatch, bool]] = []
        self._client = connect(
            Handlers(
                hello=self._greeting,
                enabled=self._enabled,
                lost=self._lost,
                found=self._found,
                loaded=self._loaded,
                leased=self._leased,
                evicted=self._evicted,
                pool_state=self._pool_state,
            )
        )
        self._reports = Reports(self._client, ledger, clock)

    # --- arrival -----------------------------------------------------------------------------------

    @property
    def client(self) -> EngineClient:
        """The connection to the sidecar."""
        return self._client

    def attach(self, deadline_s: float) -> bool:
        """Wait for the sidecar, and for slots to store the first prompts in; at the engine's start only."""
        until_s = self._clock.now_s() + deadline_s
        attached = self._client.attach(deadline_s)
        while self._client.enabled and self._reserve.asked and self._clock.now_s() < until_s:
            self._client.wait_readable(ATTACH_POLL_S)
            self.poll()
        return attached

    @guarded(lambda: None)
    def enqueue(self, request: PrefixRequest) -> None:
        """A request came in."""
        if self._settings.asks_at_arrival:
            self.arrive(request)

    @guarded(lambda: None)
    def arrive(self, request: PrefixRequest) -> None:
        """Ask the sidecar about the whole prefix of a new or preempted request, without waiting."""
        stride = self._geometry.chain_tokens // self._settings.tokens_per_hash
        chain: list[bytes] = list(request.block_hashes[stride - 1 :: stride])
        state = self._states.get(request.request_id)
        if state is None:
            state = self._states[request.request_id] = RequestState(request, chain)
        else:
            state.chain = chain
            state.looked_up = False
        self._ask(state)

    def _ask(self, state: RequestState) -> None:
        # What a former answer announced comes under that question's number, and for that question's rows.
        self._stop_waiting(state)
        if state.denied or not state.chain:
            state.give_up(state.reason)
            return
        if self._reports.reset_owed:
            state.give_up(MissReason.DETACHED)
            return
        self._seq += 1
        state.seq = self._seq
        request = state.request
        sent = self._client.send(self._arrival(state))
        now_s = self._clock.now_s()
        state.answered_s = now_s
        if not sent:
            state.give_up(MissReason.DETACHED)
            return
        state.awaiting = state.told = True
        if self._suspect:
            # One hung sidecar costs one deadline, not one per request: any sign of life ends this.
            state.give_up(MissReason.LATE)
            return
        state.prepare(self._geometry, self._suffixes)
        if not state.settled:
            state.deadline_s = now_s + self._settings.lookup_deadline_s
            self._pending[request.request_id] = state

    def _arrival(self, state: RequestState) -> Arrive:
        request = state.request
        if state.told:
            return Arrive(request.request_id, state.seq, state.chain, request.num_tokens, again=True)
        said = request_hints(request.kv_transfer_params)
        self._ledger.hints(len(said.hints), said.ignored)
        return Arrive(request.request_id, state.seq, state.chain, request.num_tokens, said.tenant, said.hints)

    @guarded(lambda: None)
    def poll(self) -> None:
        """Take in answers and give up on those that are late. Cheap; called several times a step."""
        self._client.poll()
        if self._pending:
            now_s = self._clock.now_s()
            late = [name for name, state in self._pending.items() if now_s > state.deadline_s]
            for name in late:
                state = self._pending.pop(name)
                if state.loading:
                    # The sidecar answers: only what it loads is slow.
                    state.loading = False
                    state.settle(MissReason.LATE)
                    self._ledger.failure("load_late")
                    continue
                state.give_up(MissReason.LATE)
                self._suspect = True
                self._ledger.failure("lookup_late")

    def settled(self, request_id: str) -> bool:
        """Whether look-ups of this request have their final answer."""
        state = self._states.get(request_id)
        return state is None or state.settled

    @property
    def slots_ready(self) -> int:
        """Slots leased ahead and unused."""
        return len(self._reserve)

    @guarded(lambda: None)
    def refresh(self, request: PrefixRequest) -> None:
        """The scheduler looks at this waiting request: ask if that was not done, or anew if the answer has grown old.

        Others may have stored more of its prefix since. The old answer stays valid meanwhile.
        """
        state = self._states.get(request.request_id)
        if state is None:
            self.arrive(request)
            state = self._states.get(request.request_id)
        if state is None:
            return
        state.looked_up = True
        if state.loading and state.deadline_s == math.inf:
            state.deadline_s = self._clock.now_s() + state.wait_s
        if state.hits is None or state.loads or state.denied or self._suspect:
            return
        if len(state.hits) == len(state.rows) and state.rows:
            return
        if self._clock.now_s() - state.answered_s > REFRESH_AFTER_S:
            self._ask(state)

    # --- the sidecar's messages --------------------------------------------------------------------

    def _greeting(self) -> Hello:
        hello = self._hello()
        held = self._stores.held(self._epoch)
        # The epoch also when nothing is held: it tells that all our former leases are forgotten.
        return replace(hello, held_epoch=self._epoch, held_slots=held.tobytes())

    def _enabled(self, epoch: int, slots: int) -> None:
        if epoch != self._epoch:
            self._announcements.all_gone()
        self._epoch = epoch
        self._reserve.fit(slots)
        self._suspect = False
        self._reports.attached()
        unsaid, self._unsaid = self._unsaid, []
        self._stores.settle(batch for batch, _ in unsaid)
        for batch, success in unsaid:
            self._say_stored(batch, success)
        self._top_up()

    def _lost(self) -> None:
        self._reserve.clear()
        self._pending.clear()
        self._suspect = False
        self._ledger.failure("connection_lost")
        self._reports.lost()
        for state in self._states.values():
            state.pinned = state.awaiting = state.loading = False
            if not state.loads:
                state.give_up(MissReason.DETACHED)

    def _found(self, found: Found) -> None:
        self._suspect = False
        state = self._states.get(found.request)
        if state is None:
            return  # ended meanwhile; its release is on the way
        if found.seq != state.seq:
            return  # of another life of that name, or before a reset
        self._stop_waiting(state)
        state.awaiting = False
        if found.coming and (state.loads or state.denied):
            # What comes is pinned for it as well.
            state.pinned = True
        if state.loads or state.denied:
            return
        if state.settled and not state.hits and state.reason is MissReason.LATE:
            # Too late for this request, which is being computed: its pins are of no use. Who was offered what a slow
            # load brought in time may still load that.
            self._unpin(state, force=True)
            return
        state.take_answer(found)
        state.answered_s = self._clock.now_s()
        if state.loading:
            state.wait_s = min(found.wait_s, LOAD_WAIT_MAX_S) + self._settings.lookup_deadline_s
            state.deadline_s = state.answered_s + state.wait_s if state.looked_up else math.inf
            self._pending[found.request] = state

    def _loaded(self, loaded: Loaded) -> None:
        state = self._states.get(loaded.request)
        if state is None or loaded.seq != state.seq or not state.loading:
            return  # not waited for any more; it goes with the request's release
        state.take_loaded(loaded)
        if loaded.over:
            self._stop_waiting(state)

    def _leased(self, leased: Leased) -> None:
        self._suspect = False
        slots = np.frombuffer(leased.slots, dtype="<i4")
        self._reserve.add(slots, np.frombuffer(leased.generations, dtype="<u8"), self._clock.now_s())

    def _evicted(self, evicted: Evicted) -> None:
        suffix = self._suffixes[evicted.group]
        self._announcements.gone(OffloadKey(key + suffix) for key in evicted.keys)

    def _pool_state(self, state: PoolState) -> None:
        self._reports.answered(state)

    # --- look-up and load --------------------------------------------------------------------------

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """HIT, MISS, or RETRY until the sidecar's answer or the deadline; from memory alone."""
        # Once per chunk and step: nothing here but two dictionaries.
        try:
            hits = self._states[req_context.req_id].hits
        except KeyError:
            return MISS
        if hits is None:
            return RETRY
        return HIT if key in hits else MISS

    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> Any:
        """Warm chunks come from this host's memory."""
        return HOST

    @guarded(_no_slots)
    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        """Slots and generations of `keys`, in their order."""
        state = self._states[req_context.req_id]
        hits = state.hits
        assert hits is not None, "a load before its answer"
        rows = [hits[key] for key in keys]
        state.loads += 1
        return SlotLoadStoreSpec(self._epoch, state.slots[rows], state.generations[rows])

    @guarded(lambda: None)
    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """All ranks have the bytes, or gave up: the slots may go."""
        state = self._states.get(req_context.req_id)
        if state is None:
            return
        state.loads -= 1
        assert state.loads >= 0, "a load completed twice"
        if state.loads == 0:
            self._unpin(state)
            if state.finished:
                del self._states[req_context.req_id]

    @guarded(lambda: None)
    def deny(self, request_id: str) -> None:
        """A load of this request failed: it recomputes, and is not offered the same bytes again."""
        state = self._states.get(request_id)
        if state is None:
            return
        state.denied = True
        state.ledger = None
        self._stop_waiting(state)
        state.give_up(MissReason.FAILED)
        self._ledger.failure("load_failed")

    def _unpin(self, state: RequestState, *, force: bool = False) -> None:
        if state.pinned or state.awaiting or force:
            state.pinned = False
            if state.loading:
                self._stop_waiting(state)
            self._client.send(Release(state.request.request_id))

    def _stop_waiting(self, state: RequestState) -> None:
        """Take in nothing more for the request: what still comes goes with its release."""
        state.loading = False
        self._pending.pop(state.request.request_id, None)

    # --- store -------------------------------------------------------------------------------------

    @guarded(_nothing_to_store)
    def prepare_store(self, keys: Collection[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        """Give leased slots to the chunks that are not in the warm tier yet; fewer when few are left."""
        state = self._states.get(req_context.req_id)
        if state is None or not self._client.enabled:
            return _nothing_to_store()
        fresh = self._stores.fresh(keys, state.hits or ())
        if not fresh:
            return _nothing_to_store()
        batch = self._stores.plan(fresh, req_context, self._chain_now(state))
        slots, generations = self._reserve.take(len(batch.keys))
        if len(slots) < len(batch.keys):
            self._ledger.failure("no_slot", len(batch.keys) - len(slots))
            batch.cut(len(slots))
        if not batch.keys:
            return _nothing_to_store()
        self._stores.begin(batch, slots, self._epoch)
        return PrepareStoreOutput(
            keys_to_store=batch.keys,
            store_spec=SlotLoadStoreSpec(self._epoch, slots, generations),
            evicted_keys=[],
        )

    def _chain_now(self, state: RequestState) -> list[bytes]:
        """The chain with what was decoded since the arrival."""
        stride = self._geometry.chain_tokens // self._settings.tokens_per_hash
        known = len(state.chain)
        hashes = state.request.block_hashes
        if len(hashes) // stride > known:
            state.chain.extend(hashes[(known + 1) * stride - 1 :: stride])
        return state.chain

    @guarded(lambda: None)
    def fail_store(self, keys: Iterable[OffloadKey]) -> None:
        """A rank could not write these: they must not be published."""
        for batch in self._stores.of(keys):
            batch.failed = True
        self._ledger.failure("store_failed")

    @guarded(lambda: None)
    def complete_store(self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True) -> None:
        """All ranks wrote: publish, head first. vLLM completes a job's keys together."""
        for batch in self._stores.end(keys):
            self._say_stored(batch, success and not batch.failed)

    def _say_stored(self, batch: StoreBatch, success: bool) -> None:
        """Publish, or give the slots back. Slots of another epoch are numbers that mean nothing now."""
        if batch.epoch != self._epoch:
            return
        if not self._client.enabled:
            # Named in our next greeting, and told when tiering is on again.
            self._stores.linger([batch])
            self._unsaid.append((batch, success))
            return
        if not success:
            self._client.send(batch.give_back())
            return
        for message in batch.messages():
            self._client.send(message)
        self._announcements.stored(batch.keys)

    # --- the rest of a request's life --------------------------------------------------------------

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """Nothing yet: the connector calls `arrive` with the whole request right after this."""
        return RequestOffloadingContext()

    @guarded(lambda: None)
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Once a step: answers, top-up, reports."""
        self.poll()
        for request_id in context.new_req_ids:
            state = self._states.get(request_id)
            if state is not None and not state.loads:
                self._unpin(state)
        for request_id in context.preempted_req_ids:
            state = self._states.get(request_id)
            if state is not None and not state.loads:
                state.hits = None
                self.arrive(state.request)
        self._top_up()
        self._reports.counters()
        self._reports.live(self._pinning())

    @guarded(lambda: None)
    def on_request_finished(self, req_context: ReqContext) -> None:
        """Forget the request, unless a load of it is still writing."""
        state = self._states.get(req_context.req_id)
        if state is None:
            return
        self._stop_waiting(state)
        if state.loads:
            state.finished = True
            return
        self._unpin(state)
        del self._states[req_context.req_id]

    def _top_up(self) -> None:
        if self._client.enabled:
            wanted = self._reserve.wanted(self._clock.now_s())
            if wanted:
                self._client.send(Lease(wanted))

    def _pinning(self) -> Iterator[str]:
        """Requests that have pins, or may."""
        return (name for name, state in self._states.items() if state.pinned or state.loads or state.awaiting)

    # --- ledger ------------------------------------------------------------------------------------

    @guarded(lambda: None)
    def count_moved(self, movement: str, size_bytes: int, seconds: float) -> None:
        """Copies that the ranks finished: `movement` is store or load."""
        self._ledger.moved(movement, size_bytes, seconds)

    @guarded(lambda: None)
    def note_prefix(self, request: PrefixRequest, hot: int, warm: int) -> None:
        """vLLM's latest split of a request's prompt: `hot` tokens on the GPU, `warm` to be loaded."""
        state = self._states.get(request.request_id)
        if state is not None:
            state.ledger = TokenLedger(request.num_tokens, hot, warm) if request.num_preemptions == 0 else None

    @guarded(lambda: None)
    def commit_prefix(self, request_id: str) -> None:
        """The split holds: the request was admitted, or its load succeeded."""
        state = self._states.get(request_id)
        if state is None or state.ledger is None:
            return
        split, state.ledger = state.ledger, None
        chunk_tokens = self._geometry.chain_tokens * max(self._geometry.group_strides)
        misses = split.misses(chunk_tokens, state.reason, state.evicted * self._geometry.chain_tokens)
        self._ledger.prefix(split.asked, split.hot, split.warm, misses)

    # --- vLLM's housekeeping -----------------------------------------------------------------------

    def take_events(self) -> Iterable[OffloadingEvent]:
        """Chunks published or gone since the last call."""
        return self._announcements.take()

    def has_pending_work(self) -> bool:
        """Keep the engine stepping while a message waits for room in the socket."""
        return self._client.unsent and not self._suspect

    @guarded(lambda: None)
    def reset_cache(self) -> None:
        """Forget everything, here and in the sidecar. Stores in flight were taken out by `drop_stores`."""
        self._pending.clear()
        for name, state in list(self._states.items()):
            self._unpin(state)
            state.give_up(MissReason.ABSENT)
            state.seq = state.loads = 0
            state.awaiting = False
            if state.finished:
                del self._states[name]
        # What was leased before a reset may not be published after it.
        slots, _ = self._reserve.take(len(self._reserve))
        self._reserve.clear()
        self._client.send(Return(slots.astype("<i4").tobytes()))
        self._unsaid = [(batch, False) for batch, _ in self._unsaid]
        self._announcements.all_gone()
        self._reports.reset()
        self._top_up()

    def drop_stores(self, keys: Iterable[OffloadKey]) -> list[StoreBatch]:
        """vLLM forgets a store in flight, but ranks may still write its slots: they stay ours until `settle_stores`."""
        batches = self._stores.of(keys)
        for batch in batches:
            self._stores.end(batch.keys)
        self._stores.linger(batches)
        return batches

    @guarded(lambda: None)
    def settle_stores(self, batches: list[StoreBatch]) -> None:
        """No rank writes them any more."""
        self._stores.settle(batches)
        for batch in batches:
            self._say_stored(batch, success=False)

    def get_stats(self) -> OffloadingConnectorStats | None:
        """Increments for vLLM's /metrics, or None."""
        return self._ledger.take_stats()

    def shutdown(self) -> None:
        """Say what is left to say, and leave."""
        if not self.broken:
            self._reports.counters(at_once=True)
        self._client.close()

    def disable(self) -> None:
        """Only miss from now on."""
        self.broken = True
        self._states.clear()
        self._pending.clear()
        self._client.close()

    def describe(self) -> str:
        """State in one line, for the log."""
        return (
            f"{len(self._states)} requests, {len(self._pending)} pending, {len(self._stores)} chunks being stored, "
            f"{len(self._reserve)} slots in reserve, epoch {self._epoch:x}, enabled {self._client.enabled}"
        )
