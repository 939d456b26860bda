"""Load while faults happen: engines on threads that store, and ask for what they and others stored."""

from collections.abc import Generator
from contextlib import contextmanager
from random import Random
from threading import Condition, Thread
from typing import Final

from tieredkv.bench.faults.content import Chains
from tieredkv.bench.faults.engine import Engine
from tieredkv.bench.faults.tally import Tally

LATELY_CHAINS: Final = 60
"""Chains that are asked for again: more than the slots of a node hold."""

LENGTHS: Final = (4, 24)
REQUESTS_MAX: Final = 4
REST_S: Final = 0.004
JOIN_DEADLINE_S: Final = 30.0


class Load:
    """One thread for each engine, from `start` to `close`."""

    def __init__(self, engines: list[Engine], chains: Chains, tally: Tally, random: Random) -> None:
        self._chains = chains
        self._tally = tally
        self._condition = Condition()
        self._paused = False
        self._over = False
        self._idle = 0
        self._threads = [
            Thread(target=self._run, args=(engine, Random(random.random())), name=f"load-{engine.node}", daemon=True)
            for engine in engines
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends when all requests have."""
        with self._condition:
            self._over = True
            self._condition.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(JOIN_DEADLINE_S)

    @contextmanager
    def paused(self) -> Generator[None]:
        """No engine does anything meanwhile."""
        with self._condition:
            self._paused = True
            self._condition.wait_for(lambda: self._idle == len(self._threads))
        try:
            yield
        finally:
            with self._condition:
                self._paused = False
                self._condition.notify_all()

    def _run(self, engine: Engine, random: Random) -> None:
        while self._may_go_on():
            try:
                self._once(engine, random)
            except Exception as error:  # noqa: BLE001 - whatever an engine runs into is what is counted here
                self._tally.failed(f"engine at {engine.node}: {error!r}")
            engine.rest(random.random() * REST_S)

    def _may_go_on(self) -> bool:
        """Wait while paused; False at the end."""
        with self._condition:
            self._idle += 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._over or not self._paused)
            if self._over:
                return False
            self._idle -= 1
            return True

    def _once(self, engine: Engine, random: Random) -> None:
        if random.random() < 0.3:
            chain = self._chains.make(engine.node, random.randint(*LENGTHS))
            if engine.store(chain):
                self._chains.add(chain)
            return
        lately = self._chains.lately(engine.node, LATELY_CHAINS)
        if lately:
            engine.load([random.choice(lately) for _ in range(random.randint(1, REQUESTS_MAX))])
