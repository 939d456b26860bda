"""What the sidecar says about itself: one JSON document, and Prometheus' text."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tieredkv import __version__
from tieredkv.brain.cold import PageState
from tieredkv.metrics import EVICTIONS, PUBLICATIONS, Increments, Totals, exposition
from tieredkv.sidecar.mover.traffic import moved
from tieredkv.sidecar.session import Session
from tieredkv.sidecar.warmpool import WarmPool
from tieredkv.sidecar.warmtier import WarmTier
from tieredkv.types import SlotState


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What HTTP serves, and when the loop made it."""

    metrics: str
    ready: bool
    at_s: float


def counters(totals: Totals, tier: WarmTier) -> Increments:
    """All counters: reported, our own, and those that pools and mover keep themselves."""
    values = totals.values()
    for name, label, amount in moved(tier.mover) if tier.mover is not None else ():
        values[name][label] = values[name].get(label, 0.0) + amount
    for pool in tier.pools.values():
        tallies = pool.manager.tallies
        for name, counted in ((PUBLICATIONS, tallies.publications), (EVICTIONS, tallies.evictions)):
            for label, count in counted.items():
                values[name][label] = values[name].get(label, 0.0) + count
    return values


def slots_by_state(pools: Iterable[WarmPool]) -> dict[str, int]:
    """Slots of all pools together."""
    summed = {state.name.lower(): 0 for state in SlotState}
    for pool in pools:
        for state, count in pool.manager.counts().items():
            summed[state.name.lower()] += count
    return summed


def pages_by_state(pools: Iterable[WarmPool]) -> dict[str, int]:
    """Pages of all pools together."""
    summed = {state.name.lower(): 0 for state in PageState}
    for pool in pools:
        for state, count in pool.manager.counts_pages().items():
            summed[state.name.lower()] += count
    return summed


def metrics_text(totals: Totals, tier: WarmTier, breakers: Mapping[str, int]) -> str:
    """For /metrics; `breakers` of other nodes."""
    pools = list(tier.pools.values())
    return exposition(counters(totals, tier), slots_by_state(pools), pages_by_state(pools), breakers)


def document(
    tier: WarmTier,
    sessions: Iterable[Session],
    totals: Totals,
    *,
    uptime_s: float,
    warm_bytes: int,
    quarantine_writers: int,
    cluster: dict[str, object] | None,
) -> dict[str, Any]:
    """For `tieredkv status --json`."""
    pools = list(tier.pools.values())
    vineyardd = tier.vineyardd
    return {
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": round(uptime_s, 3),
        "ready": tier.ready,
        "epoch": tier.epoch,
        "adopted": tier.adopted,
        "warm_bytes": warm_bytes,
        "vineyardd": {
            "pid": vineyardd.name.pid if vineyardd is not None else None,
            "answers": tier.answers,
            "restarts": tier.restarts,
            "failure": tier.failure,
        },
        "quarantine_writers": quarantine_writers,
        "slots": slots_by_state(pools),
        "pages": pages_by_state(pools),
        "mover": {
            "pid": tier.mover.pid if tier.mover is not None else None,
            "ready": tier.mover is not None and tier.mover.ready,
            "restarts": tier.mover.restarts if tier.mover is not None else 0,
        },
        "cluster": cluster,
        "pools": [_pool(pool) for pool in pools],
        "engines": [_engine(session) for session in sessions],
        "counters": counters(totals, tier),
    }


def _pool(pool: WarmPool) -> dict[str, Any]:
    record = pool.made.record
    return {
        "namespace": record.namespace.hex(),
        "epoch": pool.epoch,
        "description": dict(record.description),
        "body_bytes": record.geometry.body_bytes,
        "chain_tokens": record.geometry.chain_tokens,
        "group_strides": list(record.geometry.group_strides),
        "slot_bytes": record.slot_bytes,
        "slots": {state.name.lower(): count for state, count in pool.manager.counts().items()},
        "pages": {state.name.lower(): count for state, count in pool.manager.counts_pages().items()},
        "populated": pool.populated,
        "resets": pool.resets,
        "sharing": pool.sharing.document() if pool.sharing is not None else None,
    }


def _engine(session: Session) -> dict[str, Any]:
    manager = session.pool.manager
    held, leased = manager.held(session.engine_id), manager.leased(session.engine_id)
    return {
        "engine_id": session.engine_id,
        "namespace": session.pool.namespace.hex(),
        "connections": len(session.connections),
        "workers": sum(role == "worker" for role, _ in session.connections),
        "world_size": session.world_size,
        "enabled": session.enabled,
        "reason": session.verdict,
        "leased_slots": leased,
        "pinned_slots": held - leased,
        "orphaned_slots": sum(len(orphans.slots) for orphans in session.orphans),
    }
