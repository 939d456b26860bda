"""Which greetings are accepted: shape, versions and bounds. Pure functions, one line of reason each."""

from collections.abc import Mapping
from typing import Final

from tieredkv.protocol import PROTOCOL_MAX, PROTOCOL_MIN, Hello
from tieredkv.sidecar.session import ADMIN, SCHEDULER, WORKER
from tieredkv.tiers.pool import NAMESPACE_BYTES, PoolRecord
from tieredkv.types import Geometry

ROLES: Final = (SCHEDULER, WORKER, ADMIN)
ENGINE_ID_CHARS_MAX: Final = 256
WORLD_SIZE_MAX: Final = 4096
GROUPS_MAX: Final = 256
BODY_BYTES_MAX: Final = 1 << 40
DESCRIPTION_MAX: Final = 256
DESCRIPTION_CHARS_MAX: Final = 4096


def refusal(hello: Hello) -> str | None:
    """Why a greeting cannot be accepted by anybody, or None."""
    if hello.protocol_max < PROTOCOL_MIN or hello.protocol_min > PROTOCOL_MAX:
        return (
            f"protocol {hello.protocol_min} to {hello.protocol_max} is spoken by the engine, "
            f"{PROTOCOL_MIN} to {PROTOCOL_MAX} by this sidecar; install the same version of tieredkv in both"
        )
    if hello.role not in ROLES:
        return f"role {hello.role[:40]!r} is none of {', '.join(ROLES)}"
    return None if hello.role == ADMIN else _engine_refusal(hello)


def _engine_refusal(hello: Hello) -> str | None:
    strides = hello.group_strides
    bounds = {
        "engine_id": 1 <= len(hello.engine_id) <= ENGINE_ID_CHARS_MAX,
        "world_size": 1 <= hello.world_size <= WORLD_SIZE_MAX,
        "rank": 0 <= hello.rank < hello.world_size and (hello.role == WORKER or hello.rank == 0),
        "namespace": len(hello.namespace) == NAMESPACE_BYTES,
        "description": len(hello.description) <= DESCRIPTION_MAX
        and all(len(name) + len(value) <= DESCRIPTION_CHARS_MAX for name, value in hello.description.items()),
        "body_bytes": 1 <= hello.body_bytes <= BODY_BYTES_MAX,
        "chain_tokens": 1 <= hello.chain_tokens <= 1 << 20,
        "group_strides": 1 <= len(strides) <= GROUPS_MAX and all(1 <= stride <= 1 << 20 for stride in strides),
        "held_slots": len(hello.held_slots) % 4 == 0,
    }
    wrong = [name for name, good in bounds.items() if not good]
    return f"out of bounds in the greeting: {', '.join(wrong)}" if wrong else None


def geometry_of(hello: Hello) -> Geometry:
    """The shape of the chunks that the engine wants to share."""
    return Geometry(hello.body_bytes, hello.chain_tokens, hello.group_strides)


def differences(wanted: Hello, present: PoolRecord) -> str:
    """The parts in which an engine's namespace differs from that of a pool, for a person."""
    theirs = _parts(wanted.description, geometry_of(wanted))
    ours = _parts(present.description, present.geometry)
    names = [name for name in sorted(theirs | ours) if theirs.get(name) != ours.get(name)]
    shown = [f"{name} {theirs.get(name, 'absent')} instead of {ours.get(name, 'absent')}" for name in names]
    return ", ".join(shown) or "the fingerprint alone"


def _parts(description: Mapping[str, str], geometry: Geometry) -> dict[str, str]:
    return {
        "body_bytes": str(geometry.body_bytes),
        "chain_tokens": str(geometry.chain_tokens),
        "group_strides": str(geometry.group_strides),
        **description,
    }
