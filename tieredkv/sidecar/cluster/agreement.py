"""Whether two nodes understand each other: each reason names both values. Pure functions."""

from typing import Final

from tieredkv import __version__
from tieredkv.sidecar.cluster.peer_protocol import (
    PEER_PROTOCOL_MAX,
    PEER_PROTOCOL_MIN,
    PeerHello,
    PoolNews,
)
from tieredkv.sidecar.cluster.settings import ClusterSettings
from tieredkv.tiers.slots import FORMAT

FINGERPRINTS: Final = 1
"""Version of `tieredkv.brain.peer_index.fingerprints`."""

_REFERENCE_PARTS: Final = ("weights", "model_config")
"""Parts of a namespace's description that say which model it is."""


def greeting(settings: ClusterSettings, *, epoch: int, vineyard: str, wall_s: float) -> PeerHello:
    """What this node says of itself."""
    control, rpc = settings.reachable, settings.rpc
    return PeerHello(
        protocol_min=PEER_PROTOCOL_MIN,
        protocol_max=PEER_PROTOCOL_MAX,
        cluster=settings.name,
        node=settings.node_name,
        epoch=epoch,
        version=__version__,
        vineyard=vineyard,
        slot_format=FORMAT,
        fingerprints=FINGERPRINTS,
        rpc_host=rpc.host if rpc else "",
        rpc_port=rpc.port if rpc else 0,
        control_host=control.host if control else "",
        control_port=control.port if control else 0,
        wall_s=wall_s,
    )


def is_itself(ours: PeerHello, theirs: PeerHello) -> bool:
    """Whether a node has dialled itself, as it does where all nodes are given the same list."""
    return (ours.node, ours.epoch) == (theirs.node, theirs.epoch)


def refusal(ours: PeerHello, theirs: PeerHello) -> str | None:
    """Why these two cannot work together, or None."""
    if theirs.protocol_max < ours.protocol_min or theirs.protocol_min > ours.protocol_max:
        return (
            f"protocol {theirs.protocol_min} to {theirs.protocol_max} is spoken by {theirs.node}, "
            f"{ours.protocol_min} to {ours.protocol_max} by {ours.node}; install the same version of tieredkv on both"
        )
    if ours.node == theirs.node:
        return f"both are named {ours.node!r} (cluster.node_name); names must differ"
    compared = {
        "cluster.name": (theirs.cluster, ours.cluster),
        "vineyard version": (theirs.vineyard, ours.vineyard),
        "slot format": (theirs.slot_format, ours.slot_format),
        "fingerprints": (theirs.fingerprints, ours.fingerprints),
    }
    different = [
        f"{name} {their_value!r} on {theirs.node}, {our_value!r} on {ours.node}"
        for name, (their_value, our_value) in compared.items()
        if their_value != our_value
    ]
    return "; ".join(different) or None


def protocol_between(ours: PeerHello, theirs: PeerHello) -> int:
    """The newest version that both speak."""
    return min(ours.protocol_max, theirs.protocol_max)


def pool_conflict(ours: PoolNews, theirs: PoolNews) -> str | None:
    """Why two pools of one model share nothing; None if they share, or are of different models.

    Of pools with one namespace the shapes must be equal; of one model's the namespaces should be: its
    nodes were meant to share, and differ by the parts that are named.
    """
    if ours.namespace != theirs.namespace and not _same_model(ours.description, theirs.description):
        return None
    parts = (_parts(ours), _parts(theirs))
    names = [name for name in sorted(parts[0] | parts[1]) if parts[0].get(name) != parts[1].get(name)]
    shown = [f"{name} {parts[1].get(name, 'absent')} there, {parts[0].get(name, 'absent')} here" for name in names]
    if ours.namespace == theirs.namespace:
        return ", ".join(shown) or None
    return ", ".join(shown) or f"namespace {theirs.namespace.hex()} there, {ours.namespace.hex()} here"


def preferred(ours: PeerHello, theirs: PeerHello, *, dialled_here: bool) -> bool:
    """Of two connections between the same two nodes, whether this one stays: that of the lesser name's dialling.

    Both ends come to the same answer.
    """
    return dialled_here == (ours.node < theirs.node)


def _same_model(ours: dict[str, str], theirs: dict[str, str]) -> bool:
    parts = [name for name in _REFERENCE_PARTS if name in ours and name in theirs]
    return bool(parts) and all(ours[name] == theirs[name] for name in parts)


def _parts(news: PoolNews) -> dict[str, str]:
    shape = {
        "body_bytes": str(news.body_bytes),
        "chain_tokens": str(news.chain_tokens),
        "group_strides": str(news.group_strides),
    }
    return {**news.description, **shape} if news.description else shape
