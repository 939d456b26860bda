"""From a name in the configuration to a policy.

A name is one of POLICIES, or `package.module:name` of a callable that takes the capacity (resident
positions) and returns an EvictionPolicy: so third parties bring their own.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from tieredkv.config import PolicyConfig
from tieredkv.errors import ConfigError
from tieredkv.policy.admission import Admission, AdmitAll
from tieredkv.policy.arc import ARC
from tieredkv.policy.base import EvictionPolicy
from tieredkv.policy.gix import GIX, AdmitByIndex, Tuning
from tieredkv.policy.lru import LRU
from tieredkv.policy.mq import MQ
from tieredkv.policy.s3fifo import S3FIFO
from tieredkv.policy.shadow import Shadow, Trial


@dataclass(frozen=True, slots=True)
class ChosenPolicy:
    """Who leaves and who enters, for one tier."""

    eviction: EvictionPolicy
    admission: Admission


def _plain(make: Callable[[int], EvictionPolicy]) -> Callable[[PolicyConfig, int], ChosenPolicy]:
    """A policy that has no settings and no admission of its own."""
    return lambda _, capacity: ChosenPolicy(make(capacity), AdmitAll())


def _gix(config: PolicyConfig, capacity: int) -> ChosenPolicy:
    gix = GIX(
        capacity,
        Tuning(theta=config.theta, half_life_s=config.half_life_s),
        tracked_max=None if config.tracked_max == "auto" else capacity + config.tracked_max,
    )
    return ChosenPolicy(gix, AdmitByIndex(gix, config.theta) if config.theta else AdmitAll())


POLICIES: Final[dict[str, Callable[[PolicyConfig, int], ChosenPolicy]]] = {
    "arc": _plain(ARC),
    "gix": _gix,
    "lru": _plain(LRU),
    "mq": _plain(MQ),
    "s3fifo": _plain(S3FIFO),
}


def make_policy(config: PolicyConfig, capacity: int) -> ChosenPolicy:
    """What `config.name` names, for at most `capacity` resident positions. Raises ConfigError.

    With `config.shadow` it is the first of several.
    """
    if not config.shadow:
        return _named(config.name, config, capacity)
    trial = Trial(config.shadow_candidates, config.shadow_sample, config.shadow_requests)
    shadow = Shadow(config.name, capacity, trial, lambda name, size: _named(name, config, size))
    return ChosenPolicy(shadow, shadow)


def _named(name: str, config: PolicyConfig, capacity: int) -> ChosenPolicy:
    if name in POLICIES:
        return POLICIES[name](config, capacity)
    return ChosenPolicy(_imported(name)(capacity), AdmitAll())


def _imported(name: str) -> Callable[[int], EvictionPolicy]:
    module, _, attribute = name.partition(":")
    try:
        found: object = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"policy.name: {name!r} cannot be imported: {error}") from None
    if not callable(found):
        raise ConfigError(f"policy.name: {name!r} is no callable; it must take the capacity and return a policy")
    return cast("Callable[[int], EvictionPolicy]", found)
