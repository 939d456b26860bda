"""An engine without a model: the product's client and arena mapping, and known bytes instead of KV.

Its thread does what vLLM's scheduler does: nothing that it calls may wait. Look-ups are given up at the
deadlines of `tieredkv.vllm_client.manager`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Final, Self

import numpy as np

from tieredkv.bench.faults.content import BODY_BYTES, CHAIN_TOKENS, GEOMETRY, NAMESPACE, Chain, Chains, body_of
from tieredkv.bench.faults.tally import Tally
from tieredkv.clock import SystemClock
from tieredkv.errors import Unreachable
from tieredkv.protocol import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Arrive,
    Evicted,
    Found,
    Hello,
    Lease,
    Leased,
    Live,
    Loaded,
    Message,
    PoolState,
    Publish,
    Release,
)
from tieredkv.types import MissReason
from tieredkv.vllm_client.attaching import WorkerLink
from tieredkv.vllm_client.client import EngineClient, Handlers
from tieredkv.vllm_client.request_state import RequestState, TokenLedger
from tieredkv.vllm_client.reserve import SlotReserve

LOOKUP_DEADLINE_S: Final = 0.05
ATTACH_DEADLINE_S: Final = 20.0
LIVE_EVERY_S: Final = 2.0
STEP_S: Final = 0.002
"""Between two polls of a scheduler that has something to do."""

LOST_AFTER_S: Final = 10.0
"""Beyond every deadline: a request that has no answer then will never have one."""

SHORT_TOKENS: Final = 5
"""Of each prompt past its last whole chunk."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """PrefixRequest."""

    request_id: str
    num_tokens: int
    block_hashes: Sequence[bytes]
    num_preemptions: int = 0
    kv_transfer_params: None = None


class Engine:
    """Stores and looks up chains at one node. One thread uses it, after `attach`."""

    def __init__(self, name: str, node: str, socket: Path, chains: Chains, tally: Tally, *, reserve: int = 32) -> None:
        self.node = node
        self._name = name
        self._chains = chains
        self._tally = tally
        self._clock = SystemClock()
        self._reserve = SlotReserve(reserve)
        self._states: dict[str, RequestState] = {}
        self._epoch = 0
        self._seq = 0
        self._suspect = False
        self._live_at_s = 0.0
        self._link = WorkerLink(self._hello("worker"), lambda: socket, self._clock, None)
        handlers = Handlers(
            hello=lambda: self._hello("scheduler"),
            enabled=self._enabled,
            lost=self._lost,
            found=self._found,
            loaded=self._loaded,
            leased=self._leased,
            evicted=_nothing,
            pool_state=_nothing,
        )
        self._client = EngineClient(lambda: socket, handlers, self._clock)

    def attach(self) -> Self:
        """Wait until the node serves it. Raises Unreachable."""
        if not self._link.attach(ATTACH_DEADLINE_S):
            raise Unreachable(f"{self._name}: no sidecar lets its worker in")
        self._link.report("")
        self._link.watch()
        if not self._client.attach(ATTACH_DEADLINE_S):
            raise Unreachable(f"{self._name}: {self._client.reason}")
        return self

    def close(self) -> None:
        """Leave the node."""
        self._client.close()
        self._link.close()

    def rest(self, seconds: float) -> None:
        """Go on stepping for a while."""
        until_s = self._clock.now_s() + seconds
        while self._clock.now_s() < until_s:
            self._step()

    # --- look-ups -----------------------------------------------------------------------------------

    def load(self, chains: Sequence[Chain]) -> list[int]:
        """Ask for these prompts at once; of each how many leading chunks came, and were right."""
        start_s = perf_counter()
        asked = [self._arrive(chain) for chain in chains]
        waiting = list(asked)
        while waiting:
            self._step()
            now_s = perf_counter()
            for state in [state for state in waiting if state.settled]:
                waiting.remove(state)
                self._tally.waits.add(start_s, now_s)
            if waiting and now_s - start_s > LOST_AFTER_S:
                for state in waiting:
                    self._tally.failed(f"{self._name}: {state.request.request_id} was never answered")
                    state.give_up(MissReason.FAILED)
        return [self._take(state) for state in asked]

    def _arrive(self, chain: Chain) -> RequestState:
        self._seq += 1
        name = f"{self._name}-{self._seq}"
        prompt = _Prompt(name, len(chain.keys) * CHAIN_TOKENS + SHORT_TOKENS, chain.keys)
        self._tally.asked(prompt.num_tokens)
        state = RequestState(prompt, list(chain.keys), seq=self._seq)
        sent = self._send(Arrive(name, self._seq, state.chain, prompt.num_tokens))
        state.prepare(GEOMETRY, [b""])
        if not sent:
            state.give_up(MissReason.DETACHED)
            return state
        state.awaiting = True
        self._states[name] = state
        if self._suspect:
            state.give_up(MissReason.LATE)
        state.deadline_s = self._clock.now_s() + LOOKUP_DEADLINE_S
        return state

    def _take(self, state: RequestState) -> int:
        """Read what was found, and let it go."""
        reason = state.reason
        assert state.hits is not None
        reach = 0
        while reach < len(state.chain) and state.chain[reach] in state.hits:
            reach += 1
        count = self._right(state, reach)
        if count < reach:
            reason = MissReason.FAILED
        ledger = TokenLedger(state.request.num_tokens, 0, count * CHAIN_TOKENS)
        self._tally.ended(ledger.warm, ledger.misses(CHAIN_TOKENS, reason, state.evicted * CHAIN_TOKENS))
        self._states.pop(state.request.request_id, None)
        self._send(Release(state.request.request_id))
        return count

    def _right(self, state: RequestState, reach: int) -> int:
        """How many of the first `reach` chunks can be copied, all of which must be right."""
        attachment = self._link.current
        if attachment is None or attachment.epoch != self._epoch:
            return 0
        slots, generations = state.slots[:reach].astype(np.int64), state.generations[:reach]
        for number in range(reach):
            row = slice(number, number + 1)
            if not attachment.slot_words.agree(slots[row], generations[row]).all():
                return number
            start = int(attachment.offsets[slots[number]]) + attachment.body_offset
            body = attachment.arena[start : start + BODY_BYTES].copy()
            if not attachment.slot_words.agree(slots[row], generations[row]).all():
                return number
            key = state.chain[number]
            if not np.array_equal(body, body_of(key)):
                what = f"{self._name}: wrong bytes in slot {slots[number]} for chunk {number} ({key[:4].hex()})"
                self._tally.wrong(CHAIN_TOKENS, damaged=self._chains.damaged(key), what=what)
        return reach

    # --- stores -------------------------------------------------------------------------------------

    def store(self, chain: Chain) -> int:
        """Store the first chunks of a chain for which slots are there; how many."""
        self._step()
        attachment = self._link.current
        slots, generations = self._reserve.take(len(chain.keys))
        if not len(slots) or attachment is None or attachment.epoch != self._epoch:
            return 0
        places = slots.astype(np.int64)
        if not attachment.slot_words.leased(places, generations).all():
            return 0
        keys = chain.keys[: len(slots)]
        for key, place in zip(keys, places.tolist(), strict=True):
            start = int(attachment.offsets[place]) + attachment.body_offset
            attachment.arena[start : start + BODY_BYTES] = body_of(key)
        positions = np.arange(len(keys), dtype="<i4").tobytes()
        self._send(Publish(0, keys, [b"", *keys[:-1]], positions, slots.astype("<i4").tobytes()))
        self._tally.stored(len(keys))
        return len(keys)

    # --- a scheduler's step -------------------------------------------------------------------------

    def _step(self) -> None:
        self._client.wait_readable(STEP_S)
        if not self._client.enabled:
            sleep(STEP_S)  # without a socket nothing was waited for
        start_s = perf_counter()
        self._client.poll()
        self._tally.calls.add(start_s, perf_counter())
        now_s = self._clock.now_s()
        for state in self._states.values():
            if not state.settled and now_s > state.deadline_s:
                self._give_up(state)
        wanted = self._reserve.wanted(now_s) if self._client.enabled else 0
        if wanted:
            self._send(Lease(wanted))
        if now_s >= self._live_at_s:
            self._live_at_s = now_s + LIVE_EVERY_S
            self._send(Live(list(self._states)))

    def _give_up(self, state: RequestState) -> None:
        if state.loading:
            state.loading = False
            state.settle(MissReason.LATE)
        else:
            state.give_up(MissReason.LATE)
            self._suspect = True

    def _send(self, message: Message) -> bool:
        start_s = perf_counter()
        sent = self._client.send(message)
        self._tally.calls.add(start_s, perf_counter())
        return sent

    # --- what the sidecar says ----------------------------------------------------------------------

    def _hello(self, role: str) -> Hello:
        return Hello(
            PROTOCOL_MIN,
            PROTOCOL_MAX,
            role,
            engine_id=self._name,
            namespace=NAMESPACE,
            description={"model": "faults"},
            body_bytes=GEOMETRY.body_bytes,
            chain_tokens=GEOMETRY.chain_tokens,
            group_strides=GEOMETRY.group_strides,
        )

    def _enabled(self, epoch: int, _: int) -> None:
        self._epoch = epoch
        self._suspect = False
        self._reserve.clear()

    def _lost(self) -> None:
        self._reserve.clear()
        for state in self._states.values():
            state.awaiting = state.pinned = False
            state.give_up(MissReason.DETACHED)

    def _found(self, found: Found) -> None:
        self._suspect = False
        state = self._states.get(found.request)
        if state is None or found.seq != state.seq or state.settled:
            return
        state.take_answer(found)
        if state.loading:
            state.deadline_s = self._clock.now_s() + found.wait_s + LOOKUP_DEADLINE_S

    def _loaded(self, loaded: Loaded) -> None:
        state = self._states.get(loaded.request)
        if state is not None and loaded.seq == state.seq and state.loading:
            state.take_loaded(loaded)

    def _leased(self, leased: Leased) -> None:
        self._suspect = False
        slots, generations = np.frombuffer(leased.slots, "<i4"), np.frombuffer(leased.generations, "<u8")
        self._reserve.add(slots, generations, self._clock.now_s())


def _nothing(_: Evicted | PoolState) -> None:
    """Not wanted here."""
