"""kill -9 of each process at random moments under load: `python -m tests.e2e.kills --rounds 20 --json -`.

Each round kills one process, waits for recovery (warm hits again) and checks every answer on the way.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.e2e.load_process import LoadedEngine
from tests.e2e.sidecars import Sidecar

RECOVERY_BATCHES_MAX = 120


@dataclass(slots=True)
class Outcome:
    """What the rounds of one victim showed."""

    victim: str
    rounds: int = 0
    answers: int = 0
    wrong_answers: int = 0
    failed_requests: int = 0
    max_stall_ms: float = 0.0
    max_stall_cpu_ms: float = 0.0
    max_recovery_s: float = 0.0

    def take(self, batch: dict[str, Any]) -> None:
        """Count one batch of four answers."""
        self.answers += 4
        self.wrong_answers += batch["wrong"]
        if batch["stall_ms"] > self.max_stall_ms:
            self.max_stall_ms, self.max_stall_cpu_ms = batch["stall_ms"], batch["stall_cpu_ms"]


class Kills:
    """One sidecar, one engine under load, and somebody with a knife."""

    def __init__(self, model: Path, seed: int) -> None:
        self._model = model
        self._random = Random(seed)
        self._sidecar = Sidecar().start()
        self._folder = Path(tempfile.mkdtemp(prefix="tkv-kills-", dir="/tmp"))
        try:
            self._engine = self._start_engine()
        except BaseException:
            self._sidecar.stop()
            raise

    def close(self) -> None:
        """Nothing stays behind."""
        self._engine.stop()
        self._sidecar.stop()

    def run(self, victim: str, rounds: int) -> Outcome:
        """Kill `victim` that many times."""
        outcome = Outcome(victim)
        for _ in range(rounds):
            for _ in range(self._random.randrange(2, 5)):
                outcome.take(self._engine.batch())
            time.sleep(self._random.random() * 0.3)  # somewhere inside a batch
            started_s = time.monotonic()
            self._kill(victim)
            self._recover(outcome, started_s)
            outcome.rounds += 1
        return outcome

    def _kill(self, victim: str) -> None:
        if victim == "sidecar":
            self._sidecar.kill()
            self._sidecar.start()  # as a service manager would
        elif victim == "vineyardd":
            self._sidecar.kill_vineyardd()
        else:
            self._engine.kill()
            self._engine = self._start_engine()

    def _recover(self, outcome: Outcome, started_s: float) -> None:
        """Until prompts are served from the cache again."""
        for _ in range(RECOVERY_BATCHES_MAX):
            batch = self._engine.batch()
            outcome.take(batch)
            if batch["cached"] > batch["asked"] // 2:
                break
        else:
            raise AssertionError(f"no warm hits {RECOVERY_BATCHES_MAX} batches after a kill of {outcome.victim}")
        outcome.max_recovery_s = max(outcome.max_recovery_s, time.monotonic() - started_s)

    def _start_engine(self) -> LoadedEngine:
        reference = self._folder / "reference.json"
        return LoadedEngine(self._model, self._sidecar.socket, self._random.randrange(1 << 30), reference=reference)


def run_all(model: Path, rounds: dict[str, int], seed: int, tell: Callable[[str], None]) -> list[Outcome]:
    """All victims in turn."""
    kills = Kills(model, seed)
    outcomes: list[Outcome] = []
    try:
        for victim, count in rounds.items():
            outcomes.append(kills.run(victim, count))
            tell(json.dumps(asdict(outcomes[-1])))
    finally:
        kills.close()
    return outcomes


def main() -> None:
    from tieredkv.demo.model import make_llama

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--victims", default="sidecar,vineyardd,vllm")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_llama(Path(folder) / "model")
        rounds = dict.fromkeys(arguments.victims.split(","), arguments.rounds)
        run_all(Path(folder) / "model", rounds, arguments.seed, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
