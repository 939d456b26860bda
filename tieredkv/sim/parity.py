"""Does a recording replay to the same decisions? Every recorded call is made again, every outcome compared.

The managers are the production class, made from the recorded configuration; keys are synthetic and time
is what was recorded. After a difference the rest of that pool is not compared: it follows from the first.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from tieredkv.clock import ManualClock
from tieredkv.config import PolicyConfig
from tieredkv.errors import ConfigError
from tieredkv.manager import AdoptedChunk, TierManager
from tieredkv.policy import POLICIES, make_policy
from tieredkv.sim.lines import Progress, TraceError, numbered_lines
from tieredkv.trace import calls
from tieredkv.trace.calls import AnyCall, digest, synthetic_key
from tieredkv.types import EngineId, Generation, Key, RequestId, SlotId

POOLS_MAX: Final = 1024
SLOTS_MAX: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay parted from its recording: the line, its call, both outcomes."""

    line: int
    call: str
    recorded: str
    replayed: str


def _no_calls() -> dict[str, int]:
    return {}


def _no_differences() -> list[Difference]:
    return []


@dataclass(slots=True)
class Verdict:
    """What was compared, by kind of call, and what differed (one for each pool, at most).

    `hits`, `evictions`, `stores` and `refusals` count chunks of the recording. `skipped` counts calls after
    a difference; `cut`: the last line is unfinished.
    """

    compared: dict[str, int] = field(default_factory=_no_calls)
    differences: list[Difference] = field(default_factory=_no_differences)
    hits: int = 0
    evictions: int = 0
    stores: int = 0
    refusals: int = 0
    skipped: int = 0
    cut: bool = False


def verify(path: Path, *, foreign_code: bool = False, on_progress: Progress | None = None) -> Verdict:
    """Replay the recorded calls of the file at `path`. Raises TraceError and ConfigError.

    A policy that is named by an import path is run only with `foreign_code`: a file must not choose what
    code runs.
    """
    verdict = Verdict()
    pools: dict[int, _Pool | None] = {}
    for number, text in numbered_lines(path, on_progress):
        if not text.endswith(b"\n"):
            verdict.cut = True
            break
        try:
            call = calls.read_call(text)
            if isinstance(call, calls.OpenCall) and call.pool == len(pools) < POOLS_MAX:
                pools[call.pool] = _Pool(call, foreign_code=foreign_code)
                recorded, replayed = _NOTHING
            elif (pool := pools[call.pool]) is not None:
                recorded, replayed = pool.make(call)
            else:
                verdict.skipped += 1
                continue
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise TraceError(f"{path}:{number}: not a recorded call: {error}; name a file of calls") from None
        except ConfigError as error:
            raise TraceError(f"{path}:{number}: {error}") from None
        except (AssertionError, LookupError, ValueError, OverflowError, MemoryError) as error:
            why = str(error) or type(error).__name__
            raise TraceError(f"{path}:{number}: nobody can have made this call ({why}); was the file edited?") from None
        _count(verdict, call)
        if recorded != replayed:
            verdict.differences.append(Difference(number, _name(call), str(recorded), str(replayed)))
            pools[call.pool] = None
    return verdict


def _name(call: AnyCall) -> str:
    return str(type(call).__struct_config__.tag)


def _count(verdict: Verdict, call: AnyCall) -> None:
    verdict.compared[_name(call)] = verdict.compared.get(_name(call), 0) + 1
    match call:
        case calls.ArriveCall():
            verdict.hits += sum(call.found)
        case calls.LeaseCall():
            verdict.evictions += sum(map(len, call.evicted.values()))
        case calls.PublishCall():
            verdict.stores += call.rows
            verdict.refusals += len(call.slots) - call.rows
        case _:
            pass


Outcomes = tuple[Any, Any]
"""What was recorded, and what the replay gave."""

_NOTHING: Final[Outcomes] = (None, None)


class _Pool:
    """One manager, made and driven as recorded."""

    def __init__(self, opened: calls.OpenCall, *, foreign_code: bool) -> None:
        config = _policy(opened, foreign_code=foreign_code)
        if not 1 <= opened.slots <= SLOTS_MAX:
            raise ValueError(f"{opened.slots} slots")
        chosen = make_policy(config, opened.slots)
        self._clock = ManualClock(opened.now_s)
        self._manager = TierManager(
            slots=opened.slots,
            groups=opened.groups,
            policy=chosen.eviction,
            admission=chosen.admission,
            clock=self._clock,
            engine_share_max=opened.engine_share_max,
            ghosts_max=opened.ghosts_max,
            next_generation=opened.next_generation,
        )
        # One object per key, as long as the recording knows it.
        self._keys: dict[int, Key] = {}

    def make(self, call: AnyCall) -> Outcomes:
        """Make a call; its recorded outcome and that of now, equal when nothing differs."""
        self._clock.set(call.now_s)
        match call:
            case calls.ArriveCall():
                return self._arrive(call)
            case calls.LeaseCall():
                return self._lease(call)
            case calls.PublishCall():
                return self._publish(call)
            case calls.ResumeCall():
                return call.digest, digest(self._manager.resume(EngineId(call.engine), _int32(call.slots)))
            case calls.HintCall():
                return call.known, self._manager.hint(call.session, call.hints, tenant=call.tenant)
            case calls.ResetCall():
                forgotten = self._manager.reset()
                return (call.digest, self._evicted(call.evicted)), (digest(forgotten.slots), forgotten.evicted)
            case _:
                self._tell(call)
                return _NOTHING

    def _tell(self, call: AnyCall) -> None:
        """Make a call that has no outcome."""
        manager = self._manager
        match call:
            case calls.PopulateCall():
                manager.populate(call.first, call.count)
            case calls.AdoptCall():
                manager.adopt([self._adopted(row) for row in call.chunks])
            case calls.QuarantineCall():
                manager.quarantine(_int32(call.slots), np.array(call.generations, np.uint64))
            case calls.SettleCall():
                manager.end_quarantine()
            case calls.AttachCall():
                manager.attach(EngineId(call.engine))
            case calls.DetachCall():
                manager.detach(EngineId(call.engine))
            case calls.ReleaseCall():
                manager.release(EngineId(call.engine), RequestId(call.request))
            case calls.KeepCall():
                manager.keep_only(EngineId(call.engine), {RequestId(request) for request in call.live})
            case calls.ReturnCall():
                manager.give_back(EngineId(call.engine), _int32(call.slots))
            case calls.StepCall():
                manager.step(idle=call.idle)
            case _:
                raise AssertionError(f"a second {_name(call)}")

    def _arrive(self, call: calls.ArriveCall) -> Outcomes:
        found = self._manager.arrive(
            EngineId(call.engine),
            RequestId(call.request),
            self._chain(call.chain),
            strides=call.strides,
            tokens=call.tokens,
            tenant=call.tenant,
            hints=call.hints,
            again=call.again,
        )
        counts = [int(np.count_nonzero(slots >= 0)) for slots in found.slots]
        return (call.found, call.evicted, call.digest), (
            counts,
            found.evicted,
            digest(*found.slots, *found.generations),
        )

    def _lease(self, call: calls.LeaseCall) -> Outcomes:
        leased = self._manager.lease(EngineId(call.engine), call.count)
        return (call.slots, self._evicted(call.evicted), call.digest), (
            len(leased.slots),
            leased.evicted,
            digest(leased.slots, leased.generations),
        )

    def _publish(self, call: calls.PublishCall) -> Outcomes:
        keys = self._chain(call.keys)
        if call.parents is None:
            parents = [self._key(call.parent), *keys[:-1]] if keys else []
        else:
            parents = self._chain(call.parents)
        published = self._manager.publish(
            EngineId(call.engine), call.group, keys, parents, _int32(call.positions), _int32(call.slots)
        )
        return (call.rows, call.digest), (len(published.rows), digest(published.rows, published.generations))

    def _adopted(self, row: tuple[int, int, int, int, int, int]) -> AdoptedChunk:
        slot, generation, group, key, parent, position = row
        return AdoptedChunk(SlotId(slot), Generation(generation), group, self._key(key), self._key(parent), position)

    def _evicted(self, recorded: dict[int, list[int]]) -> dict[int, list[Key]]:
        return {group: self._chain(numbers) for group, numbers in recorded.items()}

    def _chain(self, numbers: list[int]) -> list[Key]:
        return [self._key(number) for number in numbers]

    def _key(self, number: int) -> Key:
        key = self._keys.get(number)
        if key is None:
            key = self._keys[number] = synthetic_key(number)
        return key


def _policy(opened: calls.OpenCall, *, foreign_code: bool) -> PolicyConfig:
    try:
        config = PolicyConfig.model_validate_json(msgspec.json.encode(opened.policy))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(("policy", *map(str, first["loc"])))
        raise ConfigError(f"{where}: {first['msg']}; recorded by tieredkv {opened.version}: verify with that") from None
    if config.name not in POLICIES and not foreign_code:
        raise ConfigError(f"policy.name: {config.name!r} is not ours; --foreign-code runs it, if you trust the file")
    return config


def _int32(numbers: list[int]) -> npt.NDArray[np.int32]:
    return np.array(numbers, np.int32)
