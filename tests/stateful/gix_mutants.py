"""Planted bugs of GIX: its runs, its counts, its indices and its admission."""

from tests.stateful.mutant import Mutant

POLICY = "tests/property/test_policy.py"
PARTS = "tests/unit/test_gix.py"

GIX_MUTANTS = (
    Mutant(
        "gix-parent-without-shield",
        "a position is evicted under a resident child",
        "tieredkv/policy/gix/policy.py",
        "            if self._forest.shielded(run):",
        "            if False:",
        POLICY,
    ),
    Mutant(
        "gix-pins-unseen",
        "what is protected is evicted",
        "tieredkv/policy/gix/policy.py",
        "        del taken[stays:]\n",
        "",
        POLICY,
    ),
    Mutant(
        "gix-parent-waits-for-ever",
        "a parent never leaves after its last child has left",
        "tieredkv/policy/gix/policy.py",
        "            if above is not None and above.resident and not above.queued:",
        "            if False:",
        PARTS,
    ),
    Mutant(
        "gix-pinned-once-stays",
        "what was protected during one eviction never leaves",
        "tieredkv/policy/gix/policy.py",
        "            self._queues.push(run, now_s, oldest=True)\n        self._resident -= len(victims)",
        "            pass\n        self._resident -= len(victims)",
        POLICY,
    ),
    Mutant(
        "gix-believes-the-chain",
        "a parent that a request claimed counts for more than the one that was published",
        "tieredkv/policy/gix/policy.py",
        "            run.parent = parent\n",
        "",
        PARTS,
    ),
    Mutant(
        "gix-remembers-without-end",
        "ghosts are not bounded",
        "tieredkv/policy/gix/runs.py",
        "        while self.tracked > tracked_max and self.forgettable:",
        "        while False:",
        PARTS,
    ),
    Mutant(
        "gix-exposure-at-exit-only",
        "what left a bin by being used is not counted as having been there",
        "tieredkv/policy/gix/tables.py",
        "        self.exposed += 0.5 * (used + crossed)",
        "        self.exposed += 0.5 * crossed",
        PARTS,
    ),
    Mutant(
        "gix-plain-hazard",
        "the index looks one bin ahead only",
        "tieredkv/policy/gix/tables.py",
        "        index[:, start] = (hits / seconds).max(axis=1)",
        "        index[:, start] = (hits / seconds)[:, 0]",
        PARTS,
    ),
    Mutant(
        "gix-crossings-twice",
        "edges crossed before the last sweep are counted again",
        "tieredkv/policy/gix/cohorts.py",
        "        since = age_bin(self._swept_s - born_s) if self._swept_s > born_s else 0",
        "        since = 0",
        PARTS,
    ),
    Mutant(
        "gix-leaves-only",
        "a long request runs out of victims and is refused",
        "tieredkv/policy/gix/policy.py",
        "        return self._queues.ascending(now_s)",
        "        return ((i, r) for i, r in self._queues.ascending(now_s) if not self._forest.shielded(r))",
        PARTS,
    ),
    Mutant(
        "gix-admits-all",
        "what promises less than its victim is kept",
        "tieredkv/policy/gix/admission.py",
        "            if victim is None or value < self._theta * victim_index:",
        "            if victim is None:",
        PARTS,
    ),
    Mutant(
        "gix-deaf",
        "hints do not reach the class",
        "tieredkv/policy/gix/classes.py",
        "    if hints.closed or hints.one_shot:\n        return ENDED\n",
        "",
        PARTS,
    ),
)
