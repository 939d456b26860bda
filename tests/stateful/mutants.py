"""Planted bugs that the tests of the brain must find: they test the tests.

    python -m tests.stateful.mutants [--json FILE|-] [--only NAME]

Each mutant is one replacement of source text, applied to a temporary copy of the package and its tests.
The clean copy must pass. Exit status 0 only if it does and every mutant is killed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.stateful.cold_mutants import COLD_MUTANTS
from tests.stateful.gix_mutants import GIX_MUTANTS
from tests.stateful.mutant import Mutant
from tests.stateful.policy_mutants import POLICY_MUTANTS

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 180
POLICY = "tests/property/test_policy.py"
PARTS = "tests/unit/test_brain_parts.py"
BY_HAND = "tests/unit/test_manager.py"
COPIED = (
    "tieredkv",
    "tests/__init__.py",
    "tests/property",
    "tests/stateful",
    "tests/sim/__init__.py",
    "tests/sim/referees.py",
    "tests/sim/test_referees.py",
    "tests/sim/trees.py",
    "examples",
    PARTS,
    BY_HAND,
    "tests/unit/test_cold_tier.py",
    "tests/unit/test_gix.py",
    "tests/unit/test_other_nodes.py",
    "pyproject.toml",
)

# Finding is enough: a mutant's failure need not be made small.
CONFTEST = """
from hypothesis import Phase, settings

settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None, print_blob=False)
settings.load_profile("mutants")
"""


MUTANTS = (
    Mutant(
        "answer-unpinned",
        "a found chunk is overwritten while it is read",
        "tieredkv/manager.py",
        "pinned = holder.pin(request, found, strides)",
        "pinned = found",
    ),
    Mutant(
        "pinned-is-evictable",
        "eviction does not see pins",
        "tieredkv/brain/residents.py",
        "if slot is not None and self._pins[slot]:",
        "if slot is not None and self._pins[slot] < 0:",
    ),
    Mutant(
        "share-of-leases-unbounded",
        "one engine leases all slots",
        "tieredkv/manager.py",
        "count = max(0, min(count, holder.room))",
        "count = max(0, count)",
    ),
    Mutant(
        "cut-one-too-few",
        "an answer pins one position more than the share has room for",
        "tieredkv/brain/holder.py",
        "head = part[: (limit - 1) // stride]",
        "head = part[: limit // stride]",
    ),
    Mutant(
        "second-arrival-pins-twice",
        "a slot that a request has pinned is pinned again, and stays so after its release",
        "tieredkv/brain/holder.py",
        "slots = slots[~np.isin(slots, before)]",
        "slots = slots[:]",
    ),
    Mutant(
        "unpin-leaks",
        "a release leaves the slot pinned for everybody",
        "tieredkv/brain/holder.py",
        "        self._table.pins[slots] = left\n",
        "",
    ),
    Mutant(
        "keep-only-inverted",
        "the live requests are released and the lost ones kept",
        "tieredkv/manager.py",
        "if request not in live",
        "if request in live",
    ),
    Mutant(
        "generation-reused",
        "two tenancies have one generation: a stale slot proves itself",
        "tieredkv/brain/slots.py",
        "self.next_generation += count",
        "self.next_generation += count - 1",
    ),
    Mutant(
        "publish-of-others",
        "an engine publishes what another is writing",
        "tieredkv/brain/slots.py",
        " and owners[slot] == owner",
        "",
    ),
    Mutant(
        "slot-published-twice",
        "one slot is given two keys in one publication",
        "tieredkv/brain/slots.py",
        "if len(set(rows)) < len(rows):",
        "if False:",
    ),
    Mutant(
        "dropped-row-stays-leased",
        "slots of refused rows leak",
        "tieredkv/manager.py",
        "        self._table.end_leases(dropped)\n        holder.leased -= len(stored) + len(dropped)",
        "        holder.leased -= len(stored)",
    ),
    Mutant(
        "stale-published",
        "KV of old weights becomes visible after a reset",
        "tieredkv/brain/publication.py",
        "elif tenancies[slot] < valid_from:",
        "elif tenancies[slot] < 0:",
    ),
    Mutant(
        "reset-keeps-old-headers",
        "a later sidecar adopts chunks of old weights from slots that were evicted before the reset",
        "tieredkv/brain/slots.py",
        "(self._state == _READY) | ((self._state == _FREE) & (self.generation > 0))",
        "self._state == _READY",
    ),
    Mutant(
        "reset-frees-pinned",
        "a slot that is being read is free after a reset",
        "tieredkv/brain/slots.py",
        "self.vacate(index[self.pins[index] == 0].tolist())",
        "self.pins[index] = 0\n        self.vacate(index.tolist())",
    ),
    Mutant(
        "unseen-pinned-leaks",
        "a chunk that was forgotten while pinned never frees its slot",
        "tieredkv/manager.py",
        "self._table.vacate(unpinned[~seen].tolist())",
        "self._table.vacate([])",
    ),
    Mutant(
        "second-group-stays",
        "a position leaves, its chunk of another group stays",
        "tieredkv/brain/warm.py",
        "        for group, residents in enumerate(self.residents):\n            gone, slots",
        "        for group, residents in enumerate(self.residents[:1]):\n            gone, slots",
    ),
    Mutant(
        "holes-closed-up",
        "chunks past a hole are answered at the wrong place of the chain",
        "tieredkv/brain/residents.py",
        'array("i", (-1,)) * (following - at)',
        'array("i", (-1,)) * 0',
    ),
    Mutant(
        "stops-at-first-hole",
        "chunks past a hole are not found",
        "tieredkv/brain/warm.py",
        "closed = len(strides) == 1 and self.forest.closed",
        "closed = True",
    ),
    Mutant(
        "stretch-entered-at-its-head",
        "a chain that enters a stretch in its middle gets the slots of its head",
        "tieredkv/brain/residents.py",
        "parts.append(stretch.slots[start : start + same])",
        "parts.append(stretch.slots[:same])",
        PARTS,
    ),
    Mutant(
        "stretch-loses-its-tail",
        "taking a key out of the middle takes the slot of the tail",
        "tieredkv/brain/residents.py",
        "del stretch.keys[at], stretch.slots[at]",
        "del stretch.keys[at], stretch.slots[-1]",
        PARTS,
    ),
    Mutant(
        "older-tenancy-adopted",
        "of two slots with the same chunk the older one is believed",
        "tieredkv/manager.py",
        "key=lambda chunk: chunk.generation, reverse=True",
        "key=lambda chunk: chunk.generation",
    ),
    Mutant(
        "quarantine-skipped",
        "after a restart a slot is free while a writer of it lives",
        "tieredkv/brain/slots.py",
        "self._state[slots] = _QUARANTINED\n        self.generation",
        "self._state[slots] = _UNPOPULATED\n        self.generation",
    ),
    Mutant(
        "quarantine-for-ever",
        "slots of dead writers are lost",
        "tieredkv/manager.py",
        "        self._table.end_quarantine()",
        "        self._table.counts()",
    ),
    Mutant(
        "detach-keeps-leases",
        "slots of a killed engine are lost",
        "tieredkv/manager.py",
        "self._table.end_leases(self._table.leases(holder.number).tolist())",
        "self._table.leases(holder.number)",
    ),
    Mutant(
        "ghost-of-a-resident",
        "a chunk that came back is still counted as evicted",
        "tieredkv/brain/publication.py",
        "        warm.ghosts.remove(of_rows(keys, rows))\n",
        "",
    ),
    Mutant(
        "cycles-allowed",
        "parents in a circle shield each other from eviction for ever",
        "tieredkv/brain/forest.py",
        "            if position >= awaited[1]:\n                return False\n",
        "",
        BY_HAND,
    ),
    Mutant(
        "path-over-orphans",
        "a batch is entered without asking whether its keys were promised other positions",
        "tieredkv/brain/forest.py",
        "fresh = self._awaited.keys().isdisjoint(keys) and ",
        "fresh = ",
        PARTS,
    ),
    Mutant(
        "parent-without-shield",
        "a position is evicted under a protected child",
        "tieredkv/policy/lru.py",
        " and keys[-1] not in self._branches",
        "",
        POLICY,
    ),
    Mutant(
        "ancestors-not-used",
        "a store leaves the head of its chain older than its tail",
        "tieredkv/policy/lru.py",
        "            if run is None or run in used:",
        "            if run is None or run in used or parts:",
        POLICY,
    ),
    Mutant(
        "heads-leave-first",
        "one use of a chain leaves its head the oldest",
        "tieredkv/policy/lru.py",
        "            run.enter(place)\n            place = run",
        "            run.enter(place)",
        POLICY,
    ),
    Mutant(
        "split-keeps-all",
        "a split run keeps the keys that it gave away",
        "tieredkv/policy/lru.py",
        "            del keys[size:]\n",
        "",
        POLICY,
    ),
    *POLICY_MUTANTS,
    *COLD_MUTANTS,
    *GIX_MUTANTS,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant. `by` is the line that told."""

    name: str
    why: str
    file: str
    killed: bool
    by: str
    seconds: float


@contextmanager
def _copy() -> Iterator[Path]:
    """The package and its tests in a place of their own."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        for path in COPIED:
            target = Path(name, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(ROOT, path).is_dir():
                shutil.copytree(Path(ROOT, path), target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(Path(ROOT, path), target)
        Path(name, "tests", "conftest.py").write_text(CONFTEST)
        yield Path(name)


def _run(root: Path, tests: Sequence[str]) -> tuple[bool, str]:
    """Whether the tests pass there; the line that tells why not."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=short", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False, f"no end within {TIMEOUT_S} s"
    if done.returncode == 0:
        return True, ""
    errors = [line[1:].strip() for line in done.stdout.splitlines() if line.startswith("E  ")]
    if done.returncode != 1 or not errors:
        raise RuntimeError(f"the tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return False, errors[0]


def apply(mutant: Mutant, root: Path) -> None:
    """Plant the bug in the copy at `root`. Raises ValueError when its text is not there exactly once."""
    path = root / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its text occurs {source.count(mutant.old)} times in {mutant.file}")
    path.write_text(source.replace(mutant.old, mutant.new))


def judge(mutant: Mutant) -> Verdict:
    """Run one mutant's tests against it."""
    start_s = time.monotonic()
    with _copy() as root:
        apply(mutant, root)
        passed, line = _run(root, [mutant.tests])
    return Verdict(mutant.name, mutant.why, mutant.file, not passed, line, round(time.monotonic() - start_s, 1))


def _clean_passes() -> bool:
    with _copy() as root:
        passed, line = _run(root, sorted({mutant.tests for mutant in MUTANTS}))
    print("clean code: " + ("passes" if passed else f"FAILS: {line}"), file=sys.stderr)
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all, print a table, and say by the exit status whether the suite is good."""
    parser = argparse.ArgumentParser(prog="python -m tests.stateful.mutants", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the verdicts there; - for standard output")
    parser.add_argument("--only", metavar="NAME", help="only this mutant, and not the clean code")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if options.only in {None, mutant.name}]
    clean = options.only is not None or _clean_passes()
    verdicts: list[Verdict] = []
    for mutant in chosen:
        verdict = judge(mutant)
        verdicts.append(verdict)
        if options.json != "-":
            state = "killed" if verdict.killed else "ALIVE "
            print(f"{state} {verdict.seconds:6.1f} s  {verdict.name:28} {verdict.by[:80]}", flush=True)
    killed = sum(verdict.killed for verdict in verdicts)
    report = json.dumps(
        {
            "clean_passes": clean,
            "killed": killed,
            "mutants": len(verdicts),
            "results": [asdict(one) for one in verdicts],
        },
        indent=2,
    )
    if options.json == "-":
        print(report)
    else:
        print(f"{killed} of {len(verdicts)} killed")
        if options.json:
            Path(options.json).write_text(report + "\n")
    return 0 if clean and killed == len(verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
