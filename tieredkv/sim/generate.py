"""Workloads from a seed: sessions that arrive, think, come back and end, written down as a trace.

Every session has its own stream of random numbers, so a factor on the think times changes when its
turns happen and nothing else.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate

import numpy as np
from numpy.random import Generator, default_rng

from tieredkv.sim.lines import BLOCK_TOKENS
from tieredkv.sim.prompts import ChainIds, Prompt, TextId
from tieredkv.sim.records import Record, as_trace
from tieredkv.sim.traces import Trace
from tieredkv.sim.workload import Workload, make_workload

_ARRIVALS, _FLOODS, _TRUNKS, _DOCUMENTS, _EDITS, _SESSIONS, _FLOODED = range(7)
"""Streams of random numbers below the seed."""


def generate(
    kind: str,
    *,
    seed: int,
    requests: int,
    block_tokens: int = BLOCK_TOKENS,
    think_time: float = 1.0,
    changes: Mapping[str, object] | None = None,
) -> Trace:
    """A trace of `requests` requests of one of KINDS; what it equals when written and read again.

    `think_time` multiplies all think times; `changes` are parameters of the kind (see Workload).
    Raises ConfigError for a kind or parameter that there is not.
    """
    workload = make_workload(kind, changes or {})
    records = generated_records(
        workload, seed=seed, requests=requests, block_tokens=block_tokens, think_time=think_time
    )
    return as_trace(records, f"{kind}-{seed}", block_tokens)


def generated_records(
    workload: Workload, *, seed: int, requests: int, block_tokens: int = BLOCK_TOKENS, think_time: float = 1.0
) -> Iterator[Record]:
    """The requests in the order of time, the last partial block of each included."""
    assert seed >= 0
    assert requests >= 1
    assert block_tokens >= 1
    assert think_time > 0
    people = _People(workload, seed, block_tokens)
    start_s: float | None = None
    for number in range(requests):
        shift = workload.shift_factor if number >= requests / 2 else 1.0
        time_s, record_of = people.step(think_time * shift)
        start_s = time_s if start_s is None else start_s
        yield record_of(round((time_s - start_s) * 1000))


@dataclass(slots=True)
class _Session:
    """One conversation, agent run or prompt of a flood."""

    name: str
    random: Generator
    trunk: Prompt
    prompt: Prompt
    flood: bool
    turn: int = 0


@dataclass(frozen=True, slots=True)
class _Answered:
    """A request but for its time."""

    ids: list[int]
    input_tokens: int
    output_tokens: int
    session: str

    def __call__(self, time_ms: int) -> Record:
        return Record(time_ms, self.input_tokens, self.output_tokens, self.ids, self.session)


@dataclass(slots=True)
class _Trunk:
    """A system prompt: the first so many tokens of some texts, and when it is edited next."""

    spans: list[tuple[TextId, int]]
    edited_s: float


class _People:
    """All who ask, and what they share."""

    def __init__(self, workload: Workload, seed: int, block_tokens: int) -> None:
        self._workload = workload
        self._seed = seed
        self._chain = ChainIds(block_tokens)
        self._arrivals = default_rng([seed, _ARRIVALS])
        self._floods = default_rng([seed, _FLOODS])
        self._edits = default_rng([seed, _EDITS])
        self._sessions = [0, 0]
        self._flooded_s = 0.0
        self._events: list[tuple[float, int, _Session]] = []
        self._order = 0
        trunks = default_rng([seed, _TRUNKS])
        self._trunks = [
            _Trunk(
                [(self._chain.text(), _length(trunks, workload.trunk_tokens_median, workload.trunk_tokens_sigma))],
                self._next_edit_s(0.0),
            )
            for _ in range(workload.trunks)
        ]
        self._trunk_odds = _zipf(workload.trunks, workload.trunk_zipf)
        documents = default_rng([seed, _DOCUMENTS])
        self._documents = [
            (self._chain.text(), _length(documents, workload.document_tokens_median, workload.document_tokens_sigma))
            for _ in range(workload.documents)
        ]
        self._document_odds = _zipf(workload.documents, workload.documents_zipf)
        self._arrive(0.0)
        if workload.flood_per_s:
            self._flood()

    def step(self, think_time: float) -> tuple[float, _Answered]:
        """When the next request comes, and what it is."""
        now_s, _, session = heappop(self._events)
        if session.turn == 0:
            if session.flood:
                self._flood()
            else:
                self._arrive(now_s)
            self._begin(session, now_s)
        else:
            self._go_on(session)
        workload = self._workload
        prompt = session.prompt
        output_tokens = _length(session.random, workload.output_tokens_median, workload.output_tokens_sigma)
        answered = _Answered(prompt.snapshot(), prompt.tokens, output_tokens, session.name)
        prompt.append(self._chain.text(), output_tokens)
        share = min(session.turn / workload.continue_turns, 1.0)
        odds = workload.continue_first + (workload.continue_later - workload.continue_first) * share
        session.turn += 1
        if session.random.random() < odds and not session.flood:
            think_s = self._think_s(session.random) * think_time
            self._push(now_s + output_tokens / workload.output_tokens_per_s + think_s, session)
        return now_s, answered

    def _begin(self, session: _Session, now_s: float) -> None:
        """The first prompt: a system prompt, what was retrieved, and a question."""
        workload, random = self._workload, session.random
        if session.flood:
            tokens = _length(random, workload.flood_tokens_median, workload.flood_tokens_sigma)
            session.prompt.append(self._chain.text(), min(tokens, workload.context_tokens_max))
            return
        if self._trunks:
            trunk = self._trunks[_pick(random, self._trunk_odds)]
            self._edit(trunk, now_s)
            for text, tokens in trunk.spans:
                session.trunk.append(text, min(tokens, max(workload.context_tokens_max - session.trunk.tokens, 0)))
        session.prompt = session.trunk.copy()
        if self._documents:
            count = int(random.integers(1, workload.documents_per_prompt_max, endpoint=True))
            # In the order of popularity, as one sorts them so that prompts share what they can.
            for rank in sorted({_pick(random, self._document_odds) for _ in range(count)}):
                text, tokens = self._documents[rank]
                session.prompt.append(text, min(tokens, max(workload.context_tokens_max - session.prompt.tokens, 0)))
        self._ask(session, workload.first_tokens_median, workload.first_tokens_sigma)

    def _go_on(self, session: _Session) -> None:
        self._ask(session, self._workload.turn_tokens_median, self._workload.turn_tokens_sigma)

    def _ask(self, session: _Session, median: float, sigma: float) -> None:
        """Add a text; a prompt that would be too long begins anew with the trunk, as if it were summed up."""
        tokens = _length(session.random, median, sigma)
        limit = self._workload.context_tokens_max
        if session.prompt.tokens + tokens > limit:
            session.prompt = session.trunk.copy()
            tokens = max(min(tokens, limit - session.prompt.tokens), 0)
        session.prompt.append(self._chain.text(), tokens)

    def _think_s(self, random: Generator) -> float:
        workload = self._workload
        if random.random() < workload.pause_share:
            return float(random.lognormal(math.log(workload.pause_s_median), workload.pause_s_sigma))
        return float(random.lognormal(math.log(workload.think_s_median), workload.think_s_sigma))

    def _edit(self, trunk: _Trunk, now_s: float) -> None:
        """Bring a system prompt up to date: of each edit since, what follows a random place is new."""
        while trunk.edited_s <= now_s:
            total = sum(tokens for _, tokens in trunk.spans)
            left = int(self._edits.integers(0, total))
            kept: list[tuple[TextId, int]] = []
            for text, tokens in trunk.spans:
                if left <= 0:
                    break
                kept.append((text, min(tokens, left)))
                left -= tokens
            new_tokens = total - sum(tokens for _, tokens in kept)
            trunk.spans = [*kept, (self._chain.text(), new_tokens)]
            trunk.edited_s = self._next_edit_s(trunk.edited_s)

    def _next_edit_s(self, after_s: float) -> float:
        life_s = self._workload.trunk_life_s
        return after_s + float(self._edits.exponential(life_s)) if life_s else math.inf

    def _arrive(self, after_s: float) -> None:
        self._push(after_s + float(self._arrivals.exponential(1 / self._workload.sessions_per_s)), self._session(False))

    def _flood(self) -> None:
        """The next prompt of a flood; time passes for floods only while there is one."""
        workload = self._workload
        self._flooded_s += float(self._floods.exponential(1 / workload.flood_per_s))
        whole, rest_s = divmod(self._flooded_s, workload.flood_s)
        self._push((whole + 1) * workload.flood_every_s - workload.flood_s + rest_s, self._session(True))

    def _session(self, flood: bool) -> _Session:
        # Numbered apart, so that floods change nothing of the sessions that they come among.
        number = self._sessions[flood]
        self._sessions[flood] += 1
        random = default_rng([self._seed, _FLOODED if flood else _SESSIONS, number])
        name = f"flood-{number}" if flood else str(number)
        return _Session(name, random, Prompt(self._chain), Prompt(self._chain), flood)

    def _push(self, time_s: float, session: _Session) -> None:
        heappush(self._events, (time_s, self._order, session))
        self._order += 1


def _length(random: Generator, median: float, sigma: float) -> int:
    return max(1, round(float(random.lognormal(math.log(median), sigma))))


def _zipf(count: int, skew: float) -> list[float]:
    """Cumulated probabilities."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -skew
    return list(accumulate((weights / weights.sum()).tolist())) if count else []


def _pick(random: Generator, cumulated: list[float]) -> int:
    return min(bisect_right(cumulated, random.random()), len(cumulated) - 1)
