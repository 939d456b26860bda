"""Three tiers in virtual time: what goes where, what waits, and that it is the same every time."""

import numpy as np
import pytest

from tieredkv.brain.cold import Copies
from tieredkv.config import PolicyConfig
from tieredkv.sim.generate import generated_records
from tieredkv.sim.hot import HotTier
from tieredkv.sim.records import write_records
from tieredkv.sim.tier_replay import replay_tiers
from tieredkv.sim.tiers import Setting, Sizes, Speeds, TierOutcome, servers_for
from tieredkv.sim.traces import Request, Trace, read_trace
from tieredkv.sim.workload import make_workload
from tieredkv.types import Key

BLOCK_TOKENS = 16
FAST = Speeds(
    chunk_bytes=1, prefill_tokens_per_s=1e4, load_bytes_per_s=1e9, promote_bytes_per_s=1e9, demote_bytes_per_s=1e9
)
LRU = PolicyConfig(name="lru")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("traces") / "chat.jsonl.gz"
    write_records(path, generated_records(make_workload("chat", {}), seed=1, requests=400), 512)
    return read_trace(path)


def request(time_s: float, name: str, blocks: int) -> Request:
    keys = [Key(f"{name}/{block}".encode().ljust(16, b".")) for block in range(blocks)]
    return Request(time_s, keys, blocks * BLOCK_TOKENS + 1, 0, "", {})


def trace_of(*requests: Request) -> Trace:
    keys = {key for each in requests for key in each.keys}
    return Trace("hand", BLOCK_TOKENS, list(requests), sum(len(each.keys) for each in requests), len(keys))


def replayed(trace: Trace, sizes: Sizes, speeds: Speeds = FAST, **setting: object) -> TierOutcome:
    chosen = {"policy": LRU, "servers": 1} | setting
    return replay_tiers(trace, Setting(sizes=sizes, **chosen), speeds)  # type: ignore[arg-type]


def by_request(outcome: TierOutcome) -> list[tuple[int, int, int]]:
    return [tuple(hits) for hits in outcome.request_hits.T.tolist()]


class TestByHand:
    def test_what_was_just_used_is_hot(self) -> None:
        trace = trace_of(request(0, "a", 4), request(10, "a", 4))
        assert by_request(replayed(trace, Sizes(8, 32, 64))) == [(0, 0, 0), (4, 0, 0)]

    def test_what_left_the_gpu_is_warm(self) -> None:
        trace = trace_of(request(0, "a", 4), request(10, "b", 4), request(20, "a", 4))
        assert by_request(replayed(trace, Sizes(4, 64, 64)))[2] == (0, 4, 0)

    @pytest.mark.parametrize("copies", Copies)
    def test_what_left_warm_is_cold(self, copies: Copies) -> None:
        others = [request(10 * number, f"b{number}", 8) for number in range(1, 9)]
        trace = trace_of(request(0, "a", 4), *others, request(100, "a", 4))
        outcome = replayed(trace, Sizes(4, 24, 200), copies=copies)
        assert by_request(outcome)[-1] == (0, 0, 4)
        assert outcome.promotions == 4

    def test_the_parts_of_a_request_add_up_to_its_time(self) -> None:
        slow = Speeds(
            chunk_bytes=1,
            prefill_tokens_per_s=BLOCK_TOKENS,
            load_bytes_per_s=2.0,
            promote_bytes_per_s=4.0,
            demote_bytes_per_s=1e9,
        )
        others = [request(100.0 * number, f"b{number}", 8) for number in range(1, 9)]
        trace = trace_of(request(0, "a", 4), *others, request(1000, "a", 4))
        outcome = replayed(trace, Sizes(4, 24, 200), slow)
        assert by_request(outcome)[-1] == (0, 0, 4)
        # Promoted at a quarter of a second each, loaded at half a second each, then the last token.
        assert outcome.ready_s[-1] == pytest.approx(1 + 2 + 1 / BLOCK_TOKENS)
        assert outcome.ready_s[0] == pytest.approx(4 + 1 / BLOCK_TOKENS)

    def test_prefetch_loads_while_a_request_is_in_line(self) -> None:
        slow = Speeds(
            chunk_bytes=1,
            prefill_tokens_per_s=BLOCK_TOKENS,
            load_bytes_per_s=1e9,
            promote_bytes_per_s=2.0,
            demote_bytes_per_s=1e9,
        )
        others = [request(100.0 * number, f"b{number}", 8) for number in range(1, 9)]
        line = [request(1000, "c", 8), request(1000.1, "a", 4)]
        trace = trace_of(request(0, "a", 4), *others, *line)
        on, off = (replayed(trace, Sizes(64, 24, 200), slow, prefetch=prefetch) for prefetch in (True, False))
        assert on.ready_s[-1] <= off.ready_s[-1]
        assert on.cold_wait_s.sum() < off.cold_wait_s.sum() or not off.cold_hits


class TestTraces:
    SIZES = Sizes(40, 240, 1600)

    @pytest.mark.parametrize("copies", Copies)
    @pytest.mark.parametrize("policy", ["lru", "gix"])
    def test_totals_add_up(self, chat: Trace, copies: Copies, policy: str) -> None:
        outcome = replayed(chat, self.SIZES, policy=PolicyConfig(name=policy), copies=copies, servers=4)
        assert len(outcome.ready_s) == len(outcome.queue_s) == outcome.requests == len(chat.requests)
        hits = outcome.request_hits.sum(axis=1).tolist()
        assert hits == [outcome.hot_hits, outcome.warm_hits, outcome.cold_hits]
        assert 0 < outcome.token_hit_rate <= outcome.block_hit_rate < 1
        assert outcome.loads == outcome.warm_hits + outcome.cold_hits
        assert (outcome.ready_s > 0).all()
        assert 0 < outcome.busy_part <= 1

    def test_the_same_every_time(self, chat: Trace) -> None:
        first, second = (replayed(chat, self.SIZES, servers=2) for _ in range(2))
        assert (first.request_hits == second.request_hits).all()
        assert (first.ready_s == second.ready_s).all()
        assert first.demotions == second.demotions

    def test_a_cold_tier_helps(self, chat: Trace) -> None:
        small, large = (replayed(chat, Sizes(40, 240, cold), servers=2) for cold in (1, 1600))
        assert large.block_hit_rate > small.block_hit_rate
        assert large.ready_s.mean() < small.ready_s.mean()

    def test_a_link_that_is_slower_than_computing_is_not_used(self, chat: Trace) -> None:
        crawling = Speeds(
            chunk_bytes=1,
            prefill_tokens_per_s=1e6,
            load_bytes_per_s=1e9,
            promote_bytes_per_s=1.0,
            demote_bytes_per_s=1e9,
        )
        outcome = replayed(chat, self.SIZES, crawling, servers=2)
        assert outcome.promotions < 200

    def test_streams_for_a_trace(self, chat: Trace) -> None:
        assert servers_for(chat, self.SIZES, FAST) >= 1
        slower = Speeds(1, FAST.prefill_tokens_per_s / 8, 1.0, 1.0, 1.0)
        assert servers_for(chat, self.SIZES, slower) > servers_for(chat, self.SIZES, FAST)


class TestHotTier:
    def test_the_deepest_block_goes_first(self) -> None:
        hot = HotTier(6)
        a, b = request(0, "a", 4).keys, request(0, "b", 4).keys
        hot.use(a)
        hot.use(b)
        assert hot.prefix(a) == 2
        assert hot.prefix(b) == 4

    def test_of_a_chain_that_is_too_long_the_head_stays(self) -> None:
        hot = HotTier(3)
        keys = request(0, "a", 8).keys
        hot.use(keys)
        assert hot.prefix(keys) == 3

    def test_never_more_than_fit(self) -> None:
        rng = np.random.default_rng(1)
        hot = HotTier(20)
        chains = [request(0, f"r{number}", int(rng.integers(1, 30))).keys for number in range(10)]
        for _ in range(200):
            hot.use(chains[int(rng.integers(10))])
            assert sum(hot.prefix(keys) for keys in chains) <= 20
