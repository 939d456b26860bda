"""A manager that writes down its calls and their outcomes: for a replay that must decide the same.

Ownership: the thread that owns the manager. A call is noted as it is, and written down at the next step,
when its answer has left.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import numpy.typing as npt

from tieredkv import __version__
from tieredkv.brain.values import Generations, Slots
from tieredkv.manager import AccessRecord, AdoptedChunk, Forgotten, Found, Leased, Published, Stepped, TierManager
from tieredkv.policy.admission import Admission
from tieredkv.policy.base import EvictionPolicy
from tieredkv.policy.hints import parse_hints, spell_hints
from tieredkv.sidecar.callfile import CallFile, HeldClock
from tieredkv.trace import Hints, calls
from tieredkv.trace.pseudonyms import NO_KEY, Pseudonyms
from tieredkv.types import EngineId, Key, RequestId


class RecordedManager(TierManager):
    """A TierManager; `policy_config` is the section of the configuration that made its policy, as JSON."""

    def __init__(
        self,
        file: CallFile,
        *,
        slots: int,
        groups: int,
        policy: EvictionPolicy,
        admission: Admission,
        policy_config: dict[str, Any],
        engine_share_max: float,
        ghosts_max: int,
        next_generation: int,
        record: AccessRecord | None = None,
    ) -> None:
        self._held = HeldClock(file.now_s())
        super().__init__(
            slots=slots,
            groups=groups,
            policy=policy,
            admission=admission,
            clock=self._held,
            engine_share_max=engine_share_max,
            ghosts_max=ghosts_max,
            next_generation=next_generation,
            record=record,
        )
        self._file = file
        self._number = file.number()
        opened = calls.OpenCall(
            pool=self._number,
            now_s=self._held.now_s(),
            version=__version__,
            slots=slots,
            groups=groups,
            policy=policy_config,
            engine_share_max=engine_share_max,
            ghosts_max=ghosts_max,
            next_generation=next_generation,
            note=calls.NOTE,
        )
        file.note(opened)

    # --- the pool -----------------------------------------------------------------------------------

    def populate(self, first: int, count: int) -> None:
        """See TierManager."""
        pool, now_s = self._begin()
        super().populate(first, count)
        self._file.note(calls.PopulateCall(pool=pool, now_s=now_s, first=first, count=count))

    def adopt(self, chunks: Sequence[AdoptedChunk]) -> None:
        """See TierManager."""
        pool, now_s = self._begin()
        super().adopt(chunks)
        self._file.note(
            lambda names: calls.AdoptCall(
                pool=pool,
                now_s=now_s,
                chunks=[
                    (each.slot, each.generation, each.group, names.key(each.key), names.key(each.parent), each.position)
                    for each in chunks
                ],
            )
        )

    def quarantine(self, slots: Slots, generations: Generations) -> None:
        """See TierManager."""
        pool, now_s = self._begin()
        super().quarantine(slots, generations)
        self._file.note(
            calls.QuarantineCall(pool=pool, now_s=now_s, slots=slots.tolist(), generations=generations.tolist())
        )

    def end_quarantine(self) -> None:
        """See TierManager."""
        pool, now_s = self._begin()
        super().end_quarantine()
        self._file.note(calls.SettleCall(pool=pool, now_s=now_s))

    # --- engines ------------------------------------------------------------------------------------

    def attach(self, engine: EngineId) -> None:
        """See TierManager."""
        pool, now_s = self._begin()
        super().attach(engine)
        self._file.note(lambda names: calls.AttachCall(pool=pool, now_s=now_s, engine=_engine(names, engine)))

    def detach(self, engine: EngineId) -> None:
        """See TierManager."""
        pool, now_s = self._begin()
        super().detach(engine)
        self._file.note(lambda names: calls.DetachCall(pool=pool, now_s=now_s, engine=_engine(names, engine)))

    def resume(self, engine: EngineId, slots: Slots) -> Slots:
        """See TierManager."""
        pool, now_s = self._begin()
        resumed = super().resume(engine, slots)
        self._file.note(
            lambda names: calls.ResumeCall(
                pool=pool,
                now_s=now_s,
                engine=_engine(names, engine),
                slots=slots.tolist(),
                digest=calls.digest(resumed),
            )
        )
        return resumed

    # --- requests -----------------------------------------------------------------------------------

    def arrive(
        self,
        engine: EngineId,
        request: RequestId,
        chain: Sequence[Key],
        *,
        strides: tuple[int, ...],
        tokens: int,
        tenant: str,
        hints: Hints,
        again: bool = False,
    ) -> Found:
        """See TierManager."""
        pool, now_s = self._begin()
        found = super().arrive(
            engine, request, chain, strides=strides, tokens=tokens, tenant=tenant, hints=hints, again=again
        )
        self._file.note(
            lambda names: calls.ArriveCall(
                pool=pool,
                now_s=now_s,
                engine=_engine(names, engine),
                request=names.name(b"request", request),
                chain=names.chain(chain),
                strides=strides,
                tokens=tokens,
                tenant=_tenant(names, tenant),
                hints=_hints(names, hints),
                again=again,
                found=[int(np.count_nonzero(slots >= 0)) for slots in found.slots],
                digest=calls.digest(*found.slots, *found.generations),
                evicted=found.evicted,
            )
        )
        return found

    def release(self, engine: EngineId, request: RequestId) -> None:
        """See TierManager."""
        pool, now_s = self._begin()
        super().release(engine, request)
        self._file.note(
            lambda names: calls.ReleaseCall(
                pool=pool, now_s=now_s, engine=_engine(names, engine), request=names.name(b"request", request)
            )
        )

    def keep_only(self, engine: EngineId, live: AbstractSet[RequestId]) -> None:
        """See TierManager."""
        pool, now_s = self._begin()
        super().keep_only(engine, live)
        self._file.note(
            lambda names: calls.KeepCall(
                pool=pool,
                now_s=now_s,
                engine=_engine(names, engine),
                live=sorted(names.name(b"request", request) for request in live),
            )
        )

    def hint(self, session: str, hints: Hints, *, tenant: str = "") -> bool:
        """See TierManager."""
        pool, now_s = self._begin()
        known = super().hint(session, hints, tenant=tenant)
        self._file.note(
            lambda names: calls.HintCall(
                pool=pool,
                now_s=now_s,
                session=_session(names, session),
                tenant=_tenant(names, tenant),
                hints=_hints(names, hints),
                known=known,
            )
        )
        return known

    # --- stores -------------------------------------------------------------------------------------

    def lease(self, engine: EngineId, count: int) -> Leased:
        """See TierManager."""
        pool, now_s = self._begin()
        leased = super().lease(engine, count)
        self._file.note(
            lambda names: calls.LeaseCall(
                pool=pool,
                now_s=now_s,
                engine=_engine(names, engine),
                count=count,
                slots=len(leased.slots),
                digest=calls.digest(leased.slots, leased.generations),
                evicted={group: names.chain(keys) for group, keys in leased.evicted.items()},
            )
        )
        return leased

    def publish(
        self,
        engine: EngineId,
        group: int,
        keys: Sequence[Key],
        parents: Sequence[Key],
        positions: npt.NDArray[np.int32],
        slots: Slots,
    ) -> Published:
        """See TierManager."""
        pool, now_s = self._begin()
        published = super().publish(engine, group, keys, parents, positions, slots)

        def line(names: Pseudonyms) -> calls.Call:
            parent = names.key(parents[0]) if parents else NO_KEY
            return calls.PublishCall(
                pool=pool,
                now_s=now_s,
                engine=_engine(names, engine),
                group=group,
                parent=parent,
                keys=names.chain(keys),
                parents=None if calls.follow(parents, keys) else [names.key(each) for each in parents],
                positions=positions.tolist(),
                slots=slots.tolist(),
                rows=len(published.rows),
                digest=calls.digest(published.rows, published.generations),
            )

        self._file.note(line)
        return published

    def give_back(self, engine: EngineId, slots: Slots) -> None:
        """See TierManager."""
        pool, now_s = self._begin()
        super().give_back(engine, slots)
        self._file.note(
            lambda names: calls.ReturnCall(pool=pool, now_s=now_s, engine=_engine(names, engine), slots=slots.tolist())
        )

    def reset(self) -> Forgotten:
        """See TierManager."""
        pool, now_s = self._begin()
        forgotten = super().reset()
        self._file.note(
            lambda names: calls.ResetCall(
                pool=pool,
                now_s=now_s,
                digest=calls.digest(forgotten.slots),
                evicted={group: names.chain(keys) for group, keys in forgotten.evicted.items()},
            )
        )
        return forgotten

    # --- housekeeping -------------------------------------------------------------------------------

    def step(self, *, idle: bool = True) -> Stepped:
        """See TierManager."""
        pool, now_s = self._begin()
        stepped = super().step(idle=idle)
        self._file.note(calls.StepCall(pool=pool, now_s=now_s, idle=idle))
        self._file.write()
        return stepped

    def _begin(self) -> tuple[int, float]:
        return self._number, self._held.hold(self._file.now_s())


def _engine(names: Pseudonyms, engine: EngineId) -> str:
    return names.name(b"engine", engine)


def _tenant(names: Pseudonyms, tenant: str) -> str:
    return names.name(b"tenant", tenant)


def _session(names: Pseudonyms, session: str) -> str:
    return names.name(b"session", session)


def _hints(names: Pseudonyms, hints: Hints) -> dict[str, str | int | float | bool]:
    known = spell_hints(parse_hints(hints))
    if "session" in known:
        known["session"] = _session(names, str(known["session"]))
    return known
