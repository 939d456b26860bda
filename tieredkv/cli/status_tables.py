"""The sidecar's status for people: one table for the node, one for pools, one for engines, one for tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from tieredkv.config.units import format_size
from tieredkv.metrics import EVICTIONS, FAILURES, MISS_TOKENS, MOVED_BYTES, PREFIX_TOKENS, PUBLICATIONS

Document = Mapping[str, Any]


def tables(document: Document) -> list[RenderableType]:
    """Everything worth a look, in the order in which one asks."""
    cluster = [_cluster(document["cluster"])] if document["cluster"] is not None else []
    return [
        _node(document),
        _pools(document["pools"]),
        *cluster,
        _engines(document["engines"]),
        _counters(document["counters"]),
    ]


def _node(document: Document) -> Table:
    vineyardd = document["vineyardd"]
    table = Table(title="sidecar", title_justify="left", show_header=False)
    table.add_row("version, pid", f"{document['version']}, {document['pid']}")
    table.add_row("state", "ready" if document["ready"] else "not ready")
    adopted = ", adopted a former one's pools" if document["adopted"] else ""
    table.add_row("up", f"{document['uptime_s']:.0f} s{adopted}")
    answers = "answers" if vineyardd["answers"] else f"does not answer ({vineyardd['failure'] or 'starting'})"
    table.add_row("vineyardd", f"pid {vineyardd['pid']}, {answers}, {vineyardd['restarts']} restarts")
    table.add_row("warm tier", format_size(document["warm_bytes"]))
    if document["quarantine_writers"]:
        table.add_row("quarantine", f"{document['quarantine_writers']} former writers still live")
    return table


def _pools(pools: Sequence[Document]) -> RenderableType:
    if not pools:
        return "no pool yet: no engine came"
    table = Table(title="pools", title_justify="left")
    for heading in ("namespace", "slot", "chunk", "ready", "leased", "free", "other", "cold", "of"):
        table.add_column(heading, justify="left" if heading == "namespace" else "right")
    for pool in pools:
        slots: Mapping[str, int] = pool["slots"]
        other = sum(count for state, count in slots.items() if state not in ("ready", "leased", "free"))
        tokens = pool["chain_tokens"] * max(pool["group_strides"])
        counts = (str(slots[state]) for state in ("ready", "leased", "free"))
        slot = format_size(pool["slot_bytes"])
        pages: Mapping[str, int] = pool["pages"]
        cold = (str(pages.get("held", 0)), str(sum(pages.values())))
        table.add_row(pool["namespace"][:12], slot, f"{tokens} tokens", *counts, str(other), *cold)
    return table


def _cluster(cluster: Document) -> Table:
    trouble = f" ({cluster['trouble']})" if cluster["trouble"] else ""
    table = Table(
        title=f"other nodes of {cluster['cluster']}, seen by {cluster['node']}{trouble}", title_justify="left"
    )
    for heading in ("node", "breaker", "opened", "silent", "clock", "pools", "untold"):
        table.add_column(heading, justify="left" if heading in ("node", "breaker") else "right")
    for peer in cluster["peers"]:
        times = (f"{peer['silent_s']:.1f} s", f"{peer['clock_apart_s']:+.1f} s")
        counts = (str(peer["pools"]), str(peer["untold"]))
        table.add_row(peer["node"], peer["breaker"].replace("_", " "), str(peer["opened"]), *times, *counts)
    return table


def _engines(engines: Sequence[Document]) -> RenderableType:
    if not engines:
        return "no engine is connected"
    table = Table(title="engines", title_justify="left")
    for heading in ("engine", "workers", "tiering", "leased", "pinned"):
        table.add_column(heading, justify="right" if heading in ("leased", "pinned") else "left")
    for engine in engines:
        workers = f"{engine['workers']} of {engine['world_size']}"
        tiering = "on" if engine["enabled"] else f"off: {engine['reason'] or 'workers are missing'}"
        held = (str(engine["leased_slots"]), str(engine["pinned_slots"]))
        table.add_row(engine["engine_id"][:18], workers, tiering, *held)
    return table


def _counters(counters: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="since the start", title_justify="left", show_header=False)
    prefix = counters[PREFIX_TOKENS]
    asked = prefix.get("asked", 0)
    for result in ("asked", "hot", "warm", "miss"):
        tokens = prefix.get(result, 0)
        share = f" ({tokens / asked:.0%})" if asked and result != "asked" else ""
        table.add_row(f"prompt tokens {result}", f"{tokens:,.0f}{share}")
    for title, name in (("missed, by reason", MISS_TOKENS), ("published", PUBLICATIONS), ("evicted", EVICTIONS)):
        table.add_row(title, _listed(counters[name]))
    moved = ", ".join(f"{movement} {format_size(int(count))}" for movement, count in counters[MOVED_BYTES].items())
    table.add_row("moved", moved or "-")
    table.add_row("failures", _listed(counters[FAILURES]))
    return table


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {count:,.0f}" for label, count in values.items() if count) or "-"
