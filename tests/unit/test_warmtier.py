"""The pools of a sidecar between their vineyardds, with a keeper that does nothing but note what it is asked."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from tieredkv.clock import ManualClock
from tieredkv.config import Config
from tieredkv.metrics import Totals
from tieredkv.sidecar.directory import RuntimeDirectory
from tieredkv.sidecar.inbox import Inbox
from tieredkv.sidecar.keeper import Keeper, PoolFailed, PoolWish, Started
from tieredkv.sidecar.record import ProcessName
from tieredkv.sidecar.recordings import Recordings
from tieredkv.sidecar.supervisor import Vineyardd
from tieredkv.sidecar.warmtier import WarmTier
from tieredkv.types import Geometry

NAMESPACE = b"n" * 16
GEOMETRY = Geometry(body_bytes=4096, chain_tokens=16, group_strides=(1,))


@dataclass
class NotingKeeper:
    """Keeps the contract of a Keeper whose vineyardd never answers."""

    wishes: list[PoolWish] = field(default_factory=list)
    restarts: int = 0

    def adopt_or_start(self) -> None: ...

    def restart(self) -> None:
        self.restarts += 1

    def make_pool(self, wish: PoolWish) -> None:
        self.wishes.append(wish)


def started(pid: int) -> Started:
    return Started(Vineyardd(ProcessName(pid, 1), -1, None), (), None)


def tier_of(folder: Path, keeper: NotingKeeper) -> WarmTier:
    config = Config.model_validate(
        {"runtime_dir": str(folder), "warm": {"size": "1MiB"}, "cold": {"size": "64MiB"}, "socket": str(folder / "s")}
    )
    return WarmTier(
        config,
        RuntimeDirectory(folder),
        cast("Keeper", keeper),
        Inbox(),
        ManualClock(),
        Totals(),
        Recordings(None, None),
        in_use=lambda _: False,
        renew=lambda: None,
        watch=lambda _, __: None,
        neighbours=None,
    )


def test_another_vineyardd_is_asked_for_the_pool_that_the_former_could_not_make(tmp_path: Path) -> None:
    keeper = NotingKeeper()
    tier = tier_of(tmp_path, keeper)
    tier.started(started(1))
    tier.invite(NAMESPACE, {}, GEOMETRY)
    tier.invite(NAMESPACE, {}, GEOMETRY)
    assert len(keeper.wishes) == 1
    assert tier.pool_failed(PoolFailed(NAMESPACE, "vineyardd died"))
    tier.lost()
    assert keeper.restarts == 1
    tier.started(started(2))
    tier.invite(NAMESPACE, {}, GEOMETRY)
    assert len(keeper.wishes) == 2
