"""The whole run: `rounds` faults under load, recovery after each, and the counts that must be zero."""

import logging
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from random import Random
from sys import getswitchinterval, setswitchinterval
from time import monotonic
from typing import Final

from rich.console import Console
from rich.table import Table

from tieredkv.bench.faults.cluster import ENGINE_NODES, LOAD_DEADLINE_S, Cluster
from tieredkv.bench.faults.content import Chains
from tieredkv.bench.faults.engine import LOOKUP_DEADLINE_S, Engine
from tieredkv.bench.faults.hiccups import Hiccups
from tieredkv.bench.faults.injections import FAULTS, Bench
from tieredkv.bench.faults.load import Load
from tieredkv.bench.faults.tally import Tally
from tieredkv.errors import ConfigError, Unreachable

ROUNDS: Final = 42
RECOVERY_DEADLINE_S: Final = 60.0
PROBE_CHUNKS: Final = 8
PROBE_REST_S: Final = 0.02
SWITCH_INTERVAL_S: Final = 0.0005
"""Between our own threads: an engine has its scheduler's thread for itself."""


@dataclass(slots=True)
class Result:
    """Counts of a run.

    `max_stall_ms` is of the calls that an engine's scheduler makes. `deadline_s` is what a request may wait
    at most: for the answer, then for what is loaded (the sidecar's deadline, and once more that for an answer).
    """

    seed: int
    rounds: int
    faults: Counter[str] = field(default_factory=Counter[str])
    wrong_tokens: int = 0
    corrupt_accepted: int = 0
    failed_requests: int = 0
    lost_ledger_tokens: int = 0
    max_stall_ms: float = 0.0
    max_extra_wait_s: float = 0.0
    deadline_s: float = 2 * LOOKUP_DEADLINE_S + LOAD_DEADLINE_S
    max_recovery_s: float = 0.0
    recovery_s: dict[str, float] = field(default_factory=dict[str, float])
    """The longest of each kind of fault."""

    max_stall_wall_ms: float = 0.0
    """The same with the time in which the machine was busy otherwise."""

    max_wait_wall_s: float = 0.0
    """The longest wait of a request, likewise."""

    max_hiccup_ms: float = 0.0
    """How late the machine woke a thread of ours that did nothing but sleep."""

    flips: int = 0
    repeated_messages: int = 0
    requests: int = 0
    asked_tokens: int = 0
    hit_tokens: int = 0
    missed_tokens: dict[str, int] = field(default_factory=dict[str, int])
    stored_chunks: int = 0
    complaints: list[str] = field(default_factory=list[str])


@contextmanager
def bench(seed: int) -> Generator[Bench]:
    """Nodes, load and probes. Raises Unreachable."""
    with _quiet():
        yield from _bench(seed)


@contextmanager
def _quiet() -> Generator[None]:
    """Short turns of this process's threads; and that engines lose their sidecars is what is done here."""
    logger = logging.getLogger("tieredkv")
    level, interval_s = logger.level, getswitchinterval()
    logger.setLevel(logging.ERROR)
    setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        logger.setLevel(level)
        setswitchinterval(interval_s)


def _bench(seed: int) -> Generator[Bench]:
    random = Random(seed)
    chains, tally = Chains(seed), Tally()
    engines: list[Engine] = []

    def engine(kind: str, node: str) -> Engine:
        made = Engine(f"{kind}-{node}", node, cluster.nodes[node].socket, chains, tally)
        engines.append(made)
        return made.attach()

    with Hiccups() as hiccups, Cluster(random) as cluster:
        try:
            load = Load([engine("load", node) for node in ENGINE_NODES], chains, tally, random)
            made = Bench(cluster, load, chains, tally, hiccups, random)
            made.probes = {node: engine("probe", node) for node in ENGINE_NODES}
            load.start()
            try:
                recover(made)
                yield made
            finally:
                load.close()
        finally:
            for each in engines:
                each.close()


def measure(console: Console, *, seed: int = 1, rounds: int = ROUNDS, kinds: Sequence[str] = ()) -> Result:
    """`rounds` faults of these kinds (none: of all), in an order that the seed tells. Raises TieredKVError."""
    unknown = set(kinds) - FAULTS.keys()
    if unknown:
        raise ConfigError(f"--kinds {min(unknown)}: no such fault; there are {', '.join(FAULTS)}")
    result = Result(seed, rounds)
    with bench(seed) as made:
        for number, kind in enumerate(plan(made, rounds, kinds)):
            seconds = one(made, kind)
            console.print(f"{number + 1}/{rounds} {kind}: served again after {seconds:.2f} s", highlight=False)
            result.faults[kind] += 1
            result.recovery_s[kind] = max(seconds, result.recovery_s.get(kind, 0.0))
    conclude(result, made)
    return result


def plan(made: Bench, rounds: int, kinds: Sequence[str]) -> list[str]:
    """Each kind as often as the others, in any order."""
    chosen = [kind for kind in kinds or FAULTS if kind != "kill_etcd" or made.cluster.etcd is not None]
    planned: list[str] = []
    while len(planned) < rounds:
        planned += made.random.sample(chosen, len(chosen))
    return planned[:rounds]


def one(made: Bench, kind: str) -> float:
    """One fault, and how long after it was over all was served again, in seconds. Raises Unreachable."""
    try:
        FAULTS[kind](made)
    finally:
        for wire in made.cluster.wires:
            wire.heal()
    try:
        return recover(made)
    except Unreachable as error:
        raise Unreachable(f"{kind}: {error}") from None


def recover(made: Bench) -> float:
    """Wait until all nodes serve, and each engine's what the other one stored; how long that took.

    Raises Unreachable.
    """
    start_s = monotonic()
    first, second = ENGINE_NODES
    while lacking := made.cluster.lacking() or _unserved(made, first, second) or _unserved(made, second, first):
        if monotonic() - start_s > RECOVERY_DEADLINE_S:
            raise Unreachable(f"not served again within {RECOVERY_DEADLINE_S:g} s: {lacking}")
    return monotonic() - start_s


def _unserved(made: Bench, home: str, other: str) -> str:
    """Why what is stored at one node now is not found at the other; empty when it is."""
    chain = made.chains.make(home, PROBE_CHUNKS)
    stored = made.probes[home].store(chain)
    if stored < PROBE_CHUNKS:
        made.probes[home].rest(PROBE_REST_S)
        return f"{stored} of {PROBE_CHUNKS} chunks stored at node {home}"
    until_s = monotonic() + LOAD_DEADLINE_S
    found = 0
    while monotonic() < until_s:
        (found,) = made.probes[other].load([chain])
        if found == PROBE_CHUNKS:
            return ""
        made.probes[other].rest(PROBE_REST_S)
    return f"{found} of {PROBE_CHUNKS} chunks of node {home} found at node {other}"


def conclude(result: Result, made: Bench) -> None:
    """Take over what was counted, after the load has ended."""
    tally = made.tally
    result.wrong_tokens = tally.wrong_tokens
    result.corrupt_accepted = tally.corrupt_accepted
    result.failed_requests = tally.failed_requests
    result.lost_ledger_tokens = tally.lost_tokens
    result.max_stall_ms = tally.calls.own_s(made.hiccups) * 1e3
    result.max_stall_wall_ms = tally.calls.wall_s * 1e3
    result.max_hiccup_ms = made.hiccups.longest_s * 1e3
    result.max_extra_wait_s = tally.waits.own_s(made.hiccups)
    result.max_wait_wall_s = tally.waits.wall_s
    result.max_recovery_s = max(result.recovery_s.values(), default=0.0)
    result.flips = made.flips
    result.repeated_messages = made.repeated
    result.requests = tally.requests
    result.asked_tokens = tally.asked_tokens
    result.hit_tokens = tally.hit_tokens
    result.missed_tokens = {reason.value: tokens for reason, tokens in tally.missed_tokens.items()}
    result.stored_chunks = tally.stored_chunks
    result.complaints = list(tally.complaints)


def report(result: Result, console: Console) -> None:
    """Print it for a person."""
    table = Table(title=f"{result.rounds} faults, seed {result.seed}")
    table.add_column("fault")
    table.add_column("times", justify="right")
    table.add_column("served again, s", justify="right")
    for kind in sorted(result.faults):
        table.add_row(kind, str(result.faults[kind]), f"{result.recovery_s[kind]:.2f}")
    console.print(table)
    console.print(
        f"{result.requests} requests, {result.asked_tokens} tokens asked, {result.hit_tokens} found; "
        f"{result.flips} bits flipped, {result.repeated_messages} messages repeated\n"
        f"wrong tokens {result.wrong_tokens}, corrupt chunks accepted {result.corrupt_accepted}, "
        f"failed requests {result.failed_requests}, tokens lost in the ledger {result.lost_ledger_tokens}\n"
        f"longest stall {result.max_stall_ms:.2f} ms ({result.max_stall_wall_ms:.2f} ms with the machine's own, "
        f"which woke a sleeper {result.max_hiccup_ms:.2f} ms late)\n"
        f"longest wait {result.max_extra_wait_s:.3f} s ({result.max_wait_wall_s:.3f} s), "
        f"deadline {result.deadline_s:.2f} s, "
        f"longest recovery {result.max_recovery_s:.2f} s",
        highlight=False,
    )
    for complaint in result.complaints:
        console.print(f"  {complaint}", highlight=False)


def to_json(result: Result) -> dict[str, object]:
    """Plain data for `--json`."""
    document: dict[str, object] = asdict(result)
    document["faults"] = dict(result.faults)
    return document
