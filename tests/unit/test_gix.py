"""The parts of GIX, each against a textbook of itself; the whole is held to the conformance suite."""

import random
from itertools import pairwise

import numpy as np
import pytest

from tieredkv.policy import UseHints
from tieredkv.policy.gix import GIX, AdmitByIndex, Tuning
from tieredkv.policy.gix.additions import Additions
from tieredkv.policy.gix.ages import AGE_S_MAX, BINS, EDGES, WIDTHS, age_bin
from tieredkv.policy.gix.classes import BASE, HINTS, HITS_MAX, NEW_BUCKETS, chain_class, hint_class, trunk_class
from tieredkv.policy.gix.cohorts import COHORTS_MAX, CohortLog
from tieredkv.policy.gix.tables import Counts, gittins, indices
from tieredkv.policy.keymap import KeyMap
from tieredkv.types import Key


def keys(name: str, count: int) -> list[Key]:
    return [Key(f"{name}-{number}".encode().ljust(32, b".")) for number in range(count)]


def store(policy: GIX, chain: list[Key], now_s: float, hints: UseHints | None = None) -> None:
    """A request uses `chain`, and what is missing of it is stored."""
    policy.access(chain, now_s, hints or UseHints())
    missing = [at for at, key in enumerate(chain) if key not in policy]
    policy.insert([chain[at] for at in missing], [chain[at - 1] if at else Key(b"") for at in missing], now_s)
    policy.maintain(now_s)


class TestAges:
    def test_bins_touch_and_reach_to_the_end(self) -> None:
        assert EDGES[0] == 0
        assert EDGES[-1] == AGE_S_MAX
        assert all(below < above for below, above in pairwise(EDGES))
        for at in range(BINS):
            assert age_bin(EDGES[at]) == at
            assert age_bin(EDGES[at] + 0.999 * WIDTHS[at]) == at
        assert age_bin(10 * AGE_S_MAX) == BINS - 1


class TestClasses:
    def test_every_history_has_a_class_of_its_own(self) -> None:
        chains = {
            chain_class(hits, later_turn, bucket)
            for hits in range(HITS_MAX + 1)
            for later_turn in (False, True)
            for bucket in range(NEW_BUCKETS)
        }
        trunks = {trunk_class(gap_s) for gap_s in (0.0, 5.0, 20.0, 50.0, 200.0, 500.0, 5000.0)}
        assert not chains & trunks
        assert chains | trunks == set(range(BASE))

    def test_of_contradicting_hints_the_one_that_frees_memory_counts(self) -> None:
        assert hint_class(UseHints(closed=True, keep=True, return_within_s=3)) == hint_class(UseHints(closed=True))
        waits = [hint_class(UseHints(return_within_s=wait_s)) for wait_s in (1.0, 100.0, 10_000.0)]
        assert len({*waits, hint_class(UseHints()), hint_class(UseHints(keep=True))}) == HINTS - 1


class TestGittins:
    def test_equals_the_best_ratio_over_all_times_to_stop(self) -> None:
        hazard = np.random.default_rng(5).random((20, BINS)) ** 3 * 0.98
        index = gittins(hazard)
        for row in range(20):
            for start in range(0, BINS, 5):
                best, alive, hits, seconds = 0.0, 1.0, 0.0, 0.0
                for at in range(start, BINS):
                    hits += alive * hazard[row, at]
                    seconds += alive * WIDTHS[at] * (1 - hazard[row, at] / 2)
                    alive *= 1 - hazard[row, at]
                    best = max(best, hits / seconds)
                assert index[row, start] == pytest.approx(best, rel=1e-9)

    def test_without_counts_the_longer_unused_the_less_it_promises(self) -> None:
        table = indices(Counts(), Tuning())[chain_class(0, later_turn=False, new_bucket=0)]
        assert table is not None
        assert all(before >= after for before, after in pairwise(table))

    def test_what_comes_back_at_an_age_is_worth_most_before_it(self) -> None:
        counts = Counts()
        class_ = chain_class(1, later_turn=True, new_bucket=0)
        peak = age_bin(60.0)
        counts.exposed[class_, : peak + 1] = 1000.0
        counts.used[class_, peak] = 900.0
        counts.exposed[class_, peak + 1 :] = 100.0
        table = indices(counts, Tuning())[class_]
        assert table is not None
        assert table[0] < table[peak] > 10 * table[peak + 2]

    def test_hints_that_were_never_given_cost_no_table(self) -> None:
        rows = indices(Counts(), Tuning())
        assert all(row is not None for row in rows[:BASE])
        assert not any(rows[BASE:])


class TestCohorts:
    def test_counts_equal_those_of_every_chunk_by_itself(self) -> None:
        """Random births, uses and sweeps; the textbook follows each member through each edge."""
        source = random.Random(3)
        log, counts = CohortLog(), Counts()
        used, exposed = np.zeros((HINTS * BASE, BINS)), np.zeros((HINTS * BASE, BINS))
        members: list[tuple[int, float, float, object]] = []
        now_s = 0.0
        for _ in range(400):
            now_s += source.expovariate(1 / 20)
            what = source.random()
            if what < 0.5 or not members:
                class_, weight = source.randrange(BASE), source.random()
                cohort = log.start(class_, now_s)
                log.enter(cohort, weight)
                exposed[class_, 0] += weight / 2
                members.append((class_, weight, now_s, cohort))
            elif what < 0.9:
                class_, weight, born_s, cohort = members.pop(source.randrange(len(members)))
                log.use(cohort, weight, now_s)  # type: ignore[arg-type]
                at = age_bin(now_s - born_s)
                used[class_, at] += weight
                exposed[class_, at] += weight / 2
                for edge in range(at):
                    exposed[class_, edge : edge + 2] += weight / 2
            else:
                log.sweep(counts, now_s)
        log.sweep(counts, now_s)
        for class_, weight, born_s, _ in members:
            for edge in range(age_bin(now_s - born_s)):
                exposed[class_, edge : edge + 2] += weight / 2
        assert np.allclose(counts.used, used)
        assert np.allclose(counts.exposed, exposed)

    def test_is_bounded_and_forgets_evenly(self) -> None:
        log, counts = CohortLog(), Counts()
        cohorts = [log.start(0, number / 10) for number in range(COHORTS_MAX + 10)]
        for cohort in cohorts:
            log.enter(cohort, 1.0)
        log.sweep(counts, len(cohorts) / 10)
        assert len(log) <= COHORTS_MAX // 2 + 5
        followed = [cohort for cohort in cohorts if cohort.row >= 0]
        assert [cohort.row for cohort in followed] == list(range(len(log)))
        before = counts.used.sum()
        for cohort in cohorts:
            log.use(cohort, 1.0, len(cohorts) / 10)
        log.sweep(counts, len(cohorts) / 10 + 1)
        assert counts.used.sum() - before == pytest.approx(len(followed))


class TestAdditions:
    def test_borders_follow_the_load(self) -> None:
        additions = Additions()
        for number in range(1000):
            additions.count(1000 + number)
        additions.renew()
        buckets = [additions.bucket(1000 + number) for number in range(1000)]
        assert buckets == sorted(buckets)
        assert set(buckets) == set(range(NEW_BUCKETS))


class TestWhole:
    def test_ghosts_are_forgotten_within_the_bound_and_residents_never(self) -> None:
        policy = GIX(100, tracked_max=150)
        for number in range(60):
            store(policy, keys(f"chain{number}", 10), float(number))
            if len(policy) > 80:
                assert policy.evict(len(policy) - 80, (), float(number))
        assert len(policy) == 80
        policy.check()

    def test_a_publication_knows_parents_better_than_a_request(self) -> None:
        policy = GIX(10)
        head, tail, stranger = keys("chain", 3)
        policy.access([head], 0.0)
        policy.access([stranger, tail], 1000.0)
        policy.insert([head, tail], [Key(b""), head], 1001.0)
        policy.check()
        assert policy.evict(2, (), 1001.0) == [tail, head]

    def test_learns_that_what_is_closed_does_not_come_back(self) -> None:
        policy = GIX(10_000)
        now_s = 0.0
        for number in range(400):
            now_s += 5
            # Each second session says that it ends, and does; the others come back after a minute.
            store(policy, keys(f"closed{number}", 8), now_s, UseHints(closed=True))
            store(policy, keys(f"open{number}", 8), now_s)
            if number >= 12:
                store(policy, keys(f"open{number - 12}", 8), now_s)
            if len(policy) > 600:
                policy.evict(len(policy) - 600, (), now_s)
        waiting = [keys(f"open{number}", 8) for number in range(388, 400)]
        assert all(key in policy for chain in waiting for key in chain)
        ended = policy.value(keys("closed399", 1)[0], now_s)
        assert ended < policy.value(waiting[-1][0], now_s) / 2
        assert not {key for chain in waiting for key in chain} & set(policy.evict(200, (), now_s))

    def test_advice_after_the_request_counts_as_well(self) -> None:
        policy = GIX(1000)
        now_s = 0.0
        for number in range(300):
            now_s += 5
            store(policy, keys(f"closed{number}", 8), now_s, UseHints(closed=True))
            if number >= 5:
                store(policy, keys(f"open{number - 5}", 8), now_s)
            store(policy, keys(f"open{number}", 8), now_s)
            if len(policy) > 400:
                policy.evict(len(policy) - 400, (), now_s)
        policy.maintain(now_s)
        told = keys("open299", 8)
        policy.advise(told[-1], UseHints(closed=True), now_s)
        policy.check()
        assert policy.value(told[0], now_s) < policy.value(keys("open298", 8)[0], now_s) / 2

    def test_admission_keeps_out_what_promises_less_than_its_victims(self) -> None:
        policy = GIX(2000)
        admission = AdmitByIndex(policy, 1.0)
        now_s = 0.0
        for number in range(300):
            now_s += 5
            store(policy, keys(f"once{number}", 8), now_s, UseHints(one_shot=True))
            for back in (1, 2, 3):
                if number >= back:
                    store(policy, keys(f"again{number - back}", 8), now_s)
            store(policy, keys(f"again{number}", 8), now_s)
            if len(policy) > 24:
                # What will come back is all that is left.
                waiting = {key for back in range(3) for key in keys(f"again{number - back}", 8)}
                policy.evict(len(policy) - 24, waiting, now_s)
        flood = keys("flood", 8)
        policy.access(flood, now_s, UseHints(one_shot=True))
        parents = [Key(b""), *flood[:-1]]
        assert admission.admit(flood, parents, 0, now_s) == [True] * 8
        assert admission.admit(flood, parents, 5, now_s) == [True] * 3 + [False] * 5

    def test_a_long_request_may_displace_many_short_chains(self) -> None:
        """Shielded runs are victims too: else a request longer than all leaves together is refused."""
        policy = GIX(2000)
        for number in range(20):
            chain = keys(f"chain{number}", 30)
            for end in (10, 20, 30):
                store(policy, chain[:end], number + end / 100)
        newcomer = keys("long", 500)
        policy.access(newcomer, 5000.0)
        verdicts = AdmitByIndex(policy, 1.0).admit(newcomer, [Key(b""), *newcomer[:-1]], 500, 5000.0)
        assert all(verdicts)


class TestKeyMap:
    def test_is_a_dictionary(self) -> None:
        source = random.Random(1)
        shards: KeyMap[int] = KeyMap()
        model: dict[Key, int] = {}
        for value in range(300):
            some = keys(f"{source.randrange(50)}", source.randrange(1, 9))
            if source.random() < 0.3:
                gone = [key for key in some if key in model]
                shards.discard(gone)
                for key in gone:
                    del model[key]
            else:
                shards.assign(some, value)
                model |= dict.fromkeys(some, value)
            assert len(shards) == len(model)
            known = [at for at, key in enumerate(some) if key in model]
            assert shards.first_known(some, 0) == (known[0] if known else len(some))
        assert all(shards[key] == value and shards.get(key) == value and key in shards for key, value in model.items())
        assert sorted(shards.values()) == sorted(model.values())
        assert shards.get(Key(b"")) is None
        assert Key(b"") not in shards
        shards.clear()
        assert len(shards) == 0
