"""Load with random faults for long: does anything grow, and does the ledger add up at the end?

Measured when all is served and nothing is asked, at the start (after a warm-up) and at the end. The faults
are those that no process dies of: a new one would hide what the one before had gathered.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tieredkv.bench.faults import run
from tieredkv.bench.faults.injections import FAULTS, Bench
from tieredkv.bench.faults.node import PARTS, Node, wait_for

MINUTES: Final = 60.0
WARM_UP_S: Final = 20.0
BETWEEN_S: Final = 5.0
"""Of load alone, between two faults."""

SETTLE_DEADLINE_S: Final = 15.0
LASTING: Final = tuple(kind for kind in FAULTS if kind == "kill_etcd" or not kind.startswith(("kill_", "old_")))


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one node. Slots and pages by state, of its engines what they hold."""

    rss_mib: dict[str, float]
    descriptors: dict[str, int]
    slots: dict[str, int]
    pages: dict[str, int]
    engines: int
    held_slots: int


@dataclass(slots=True)
class Soak:
    """What was counted, and what each node used at the start and at the end."""

    minutes: float
    counted: run.Result
    start: dict[str, Usage] = field(default_factory=dict[str, Usage])
    end: dict[str, Usage] = field(default_factory=dict[str, Usage])
    harness_rss_mib: tuple[float, float] = (0.0, 0.0)


def measure(console: Console, *, minutes: float = MINUTES, seed: int = 1) -> Soak:
    """Load for so long. Raises TieredKVError."""
    result = Soak(minutes, run.Result(seed, 0))
    with run.bench(seed) as made:
        made.a_while_of(WARM_UP_S)
        result.start = _usages(made)
        harness_mib = _rss_mib("self")
        until_s = monotonic() + 60 * minutes
        faults: Counter[str] = result.counted.faults
        while monotonic() < until_s:
            for kind in run.plan(made, len(LASTING), LASTING):
                if monotonic() >= until_s:
                    break
                seconds = run.one(made, kind)
                faults[kind] += 1
                result.counted.recovery_s[kind] = max(seconds, result.counted.recovery_s.get(kind, 0.0))
                made.a_while_of(BETWEEN_S)
            console.print(
                f"{(until_s - monotonic()) / 60:.0f} minutes left, {faults.total()} faults, "
                f"{made.tally.requests} requests, {made.tally.wrong_tokens} wrong tokens",
                highlight=False,
            )
        result.end = _usages(made)
        result.harness_rss_mib = harness_mib, _rss_mib("self")
    result.counted.rounds = faults.total()
    run.conclude(result.counted, made)
    return result


def report(result: Soak, console: Console) -> None:
    """Print it for a person."""
    run.report(result.counted, console)
    table = Table(title=f"{result.minutes:g} minutes: at the start, at the end")
    for column in ("node", *PARTS, "slots", "pages"):
        table.add_column(column)
    for name, start in result.start.items():
        end = result.end[name]
        parts = [
            f"{start.rss_mib[part]:.0f} > {end.rss_mib[part]:.0f} MiB\n"
            f"{start.descriptors[part]} > {end.descriptors[part]} fds"
            for part in PARTS
        ]
        table.add_row(name, *parts, _states(start.slots, end.slots), _states(start.pages, end.pages))
    console.print(table)


def to_json(result: Soak) -> dict[str, object]:
    """Plain data for `--json`."""
    return run.to_json(result.counted) | {
        "minutes": result.minutes,
        "start": {name: asdict(usage) for name, usage in result.start.items()},
        "end": {name: asdict(usage) for name, usage in result.end.items()},
        "harness_rss_mib": list(result.harness_rss_mib),
    }


def _usages(made: Bench) -> dict[str, Usage]:
    """Of all nodes, while nothing is asked."""
    with made.load.paused():
        for node in made.cluster.nodes.values():
            wait_for(partial(_settled, node), f"nothing moves at node {node.name}", SETTLE_DEADLINE_S)
        return {name: _usage(node) for name, node in made.cluster.nodes.items()}


def _settled(node: Node) -> bool:
    """Whether nothing is on its way, nor pinned for a request."""
    status = node.status()
    pinned = sum(engine["pinned_slots"] for engine in status["engines"])
    return not status["slots"]["loading"] and not status["slots"]["demoting"] and not pinned


def _usage(node: Node) -> Usage:
    status: dict[str, Any] = node.status()
    return Usage(
        rss_mib={part: round(_rss_mib(str(node.pid(part))), 1) for part in PARTS},
        descriptors={part: len(list(Path(f"/proc/{node.pid(part)}/fd").iterdir())) for part in PARTS},
        slots=status["slots"],
        pages=status["pages"],
        engines=len(status["engines"]),
        held_slots=sum(engine["leased_slots"] + engine["pinned_slots"] for engine in status["engines"]),
    )


def _rss_mib(pid: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _states(start: dict[str, int], end: dict[str, int]) -> str:
    rows = [f"{name} {start[name]} > {end[name]}" for name in start if start[name] or end[name]]
    return "\n".join(rows)
