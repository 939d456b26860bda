"""A node without engines, whose pools are made because others have them."""

import os
import signal
from itertools import count

from .conftest import Start
from .engine import Engine, chain
from .process import wait_until
from .test_cluster import PAGES, Nodes, joined, sharing


def test_its_pool_is_made_again_after_its_vineyardd_died(start: Start) -> None:
    nodes = Nodes(start, ["a", "m"])
    a, m = nodes.start("a"), nodes.start("m", slots=1, pages=PAGES)
    joined(a, m)
    engine = Engine(a.socket)
    wait_until(lambda: m.status()["pools"], "a pool")
    wait_until(lambda: sharing(a)["peers"] == 1, "shared")
    before = m.status()["vineyardd"]["pid"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: m.status()["vineyardd"]["pid"] not in {None, before}, "another vineyardd")
    wait_until(lambda: m.status()["pools"], "a pool again")
    wait_until(lambda: m.status()["mover"]["ready"] and a.status()["mover"]["ready"], "movers")
    wait_until(lambda: sharing(a)["peers"] == 1, "shared again")

    seeds = count()

    def demoted() -> bool:
        engine.store(chain(next(seeds), 32))
        return m.status()["pages"]["held"] > 0

    wait_until(demoted, "what leaves a's warm tier is pulled")
