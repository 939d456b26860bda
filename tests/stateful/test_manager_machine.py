"""TierManager against an oracle: several engines, lost messages, restarts, nonsense, faults as rules."""

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.stateful.machine_cold import ColdMachine
from tests.stateful.machine_stores import StoreMachine
from tests.stateful.node import int32
from tests.stateful.space import (
    ENGINES,
    EXPECTED_MARKS,
    MARKS,
    REQUESTS,
    SLOTS,
    chains,
    engines,
    requests,
)
from tieredkv.types import EngineId, RequestId

MACHINE = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


class ManagerMachine(StoreMachine):
    """Scenes: what single rules seldom reach by chance."""

    @rule(name=engines, path=chains)
    def just_store(self, name: EngineId, path: str) -> None:
        self.store(name, path)

    @rule(name=engines, request=requests, path=chains)
    def ask_and_store(self, name: EngineId, request: RequestId, path: str) -> None:
        self.arrive(name, request, path)
        self.store(name, path)
        self.arrive(name, request, path)

    @rule(name=engines, request=requests, path=chains)
    def kill_engine(self, name: EngineId, request: RequestId, path: str) -> None:
        self.ask_and_store(name, request, path)
        self.lease(name, 1)
        if name in self.absent:
            return
        if self.engines.pop(name).held():
            MARKS["engine killed"] += 1
        self.manager.detach(name)

    @rule(name=engines, path=chains, returns=st.booleans())
    def crash_between_lease_and_publication(self, name: EngineId, path: str, returns: bool) -> None:
        if self.absent or not self._here(name):
            return
        self.lease(name, 2)
        self.kill_sidecar(0)
        for absent in list(self.absent):
            self.reconnect(absent, returns)
        if returns:
            self.publish(name, path, 0, 0, 2)

    @precondition(lambda self: self.strides == (1, 1) and not self.absent)
    @rule(path=st.sampled_from(("0", "100")), reset=st.booleans())
    def crash_with_a_whole_header_in_a_free_slot(self, path: str, reset: bool) -> None:
        """A position left two slots, one was needed; then its chunks move, or the weights change."""
        for name in ENGINES:
            self._here(name)
            self._let_go(name)
        self.reset(0)
        self.admission.refusals = 0
        if self.populated < SLOTS:
            self.populate(SLOTS)
        first, second, third = ENGINES
        self.store(first, "01")
        self.store(second, "1")
        self.lease(third, 3)
        self.lease(second, 1)
        if reset:
            self.reset(0)
        else:
            self.store(first, path)
        self.kill_sidecar(0)
        self.reconnect(first, True)
        self.arrive(first, REQUESTS[0], "01")

    def _let_go(self, name: EngineId) -> None:
        engine = self.engines[name]
        engine.ended |= engine.reads.keys() | engine.hopes.keys()
        self.keep_only(name)
        self.manager.give_back(name, int32(list(engine.leases)))
        engine.leases.clear()
        engine.stale.clear()

    @rule(name=engines, path=chains)
    def reset_between_lease_and_publication(self, name: EngineId, path: str) -> None:
        if self.absent or not self._here(name):
            return
        self.lease(name, 2)
        self.reset(0)
        self.publish(name, path, 0, 0, 2)

    @rule(name=engines, request=requests, path=chains)
    def abort_unheard(self, name: EngineId, request: RequestId, path: str) -> None:
        self.ask_and_store(name, request, path)
        self.lose_a_release(name, request)
        self.lease(name, 4)
        self.keep_only(name)


class TieredMachine(ColdMachine, ManagerMachine):
    """The same with a cold tier."""

    COLD = True


RUNS_MAX = 4
"""The rarest paths happen in most runs, not in all. Each run has a seed of its own, the same everywhere."""


def test_manager_keeps_every_promise() -> None:
    """All runs, then: each path that the rules are there for was really taken, if not at once."""
    MARKS.clear()
    missing = EXPECTED_MARKS
    for run in range(RUNS_MAX):
        for machine in (ManagerMachine, TieredMachine):
            run_state_machine_as_test(seed(run)(machine), settings=MACHINE)
        missing = EXPECTED_MARKS - {mark for mark, count in MARKS.items() if count}
        if not missing:
            break
    assert not missing, f"never happened: {sorted(missing)}; counts: {dict(MARKS)}"
