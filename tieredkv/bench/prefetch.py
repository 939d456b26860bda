"""`tieredkv bench prefetch`: what it is worth to load a prefix from cold pages while its request is queued.

`requests` requests are queued at once on a real vLLM that serves one at a time. The KV of their prefixes
lies in cold pages. Time to the first token, when the load starts at arrival, when it starts once the
request is scheduled (engine.prefetch), and without tieredkv, when everything is computed again.

The engines take turns, so that whatever else the machine does meets all of them. There are three sets of
prompts: while two of them are asked, the third one leaves warm.

The model has much KV and little to compute, like a large model on a GPU: to load a prefix takes as long as
to answer a short question after it, and much less than to compute it.
"""

import os
import select
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from random import Random
from statistics import quantiles
from time import monotonic
from typing import Final

from rich.console import Console
from rich.table import Table

from tieredkv.bench.machine import describe_machine
from tieredkv.bench.prefetch_engine import Answers, EngineProcess
from tieredkv.bench.sidecar_process import sidecar, status
from tieredkv.demo.model import make_llama
from tieredkv.errors import Unreachable
from tieredkv.metrics import MOVED_BYTES
from tieredkv.tiers.slots import slot_bytes

MODES: Final = ("arrival", "scheduled", "recompute")
LAYERS: Final = 8
KV_HEADS: Final = 16
HEAD_DIM: Final = 64
TOKEN_BYTES: Final = LAYERS * KV_HEADS * HEAD_DIM * 2 * 4
BLOCK_TOKENS: Final = 32
CHUNK_TOKENS: Final = 32
SLOT_BYTES: Final = slot_bytes(CHUNK_TOKENS * TOKEN_BYTES) + 64
LOW_FREE: Final = 0.15
HIGH_FREE: Final = 0.2
"""Of the warm slots: a prompt that is stored takes many at once, and what is not demoted by then is lost."""
VOCABULARY: Final = 512
SETS: Final = 3
NEW_TOKENS: Final = 24
"""Of each prompt, behind the prefix; a new question each time, too short to be stored."""
ANSWER_TOKENS: Final = 4
WARM_UP_ROUNDS: Final = 1
IDLE_DEADLINE_S: Final = 30.0


@dataclass(slots=True)
class Mode:
    """One way to ask. Seconds to the first token of all requests; per request prompt tokens not computed and
    chunks that came from cold.
    """

    mode: str
    ttft_s: list[float] = field(default_factory=list[float])
    cached_tokens: float = 0.0
    loaded_chunks: float = 0.0

    @property
    def ttft_p50_s(self) -> float:
        """Half of the requests had their first token sooner."""
        return quantiles(self.ttft_s, n=100, method="inclusive")[49]

    @property
    def ttft_p99_s(self) -> float:
        """All but one in a hundred."""
        return quantiles(self.ttft_s, n=100, method="inclusive")[98]


@dataclass(frozen=True, slots=True)
class Result:
    """What `--json` writes. `tokens_equal`: all modes answered the same."""

    machine: dict[str, str]
    load_average: tuple[float, float]
    requests: int
    rounds: int
    prefix_tokens: int
    prefix_bytes: int
    modes: list[Mode]
    tokens_equal: bool


def measure(console: Console, *, requests: int = 6, prefix_tokens: int = 1024, rounds: int = 4) -> Result:
    """Run everything; some minutes. Raises Unreachable and VineyardError."""
    load_before = os.getloadavg()[0]
    chunks = requests * (prefix_tokens // CHUNK_TOKENS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tieredkv-bench-")))
        context_tokens = prefix_tokens + NEW_TOKENS + ANSWER_TOKENS + BLOCK_TOKENS
        model = make_llama(
            folder / "model",
            layers=LAYERS,
            hidden=256,
            heads=KV_HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            intermediate=512,
            vocab=VOCABULARY,
            context_tokens=context_tokens,
        )
        cold = {"size": (SETS + 1) * chunks * SLOT_BYTES, "low_free": LOW_FREE, "high_free": HIGH_FREE}
        lease_chunks = prefix_tokens // CHUNK_TOKENS + 2
        warm_bytes = int((chunks + 2 * lease_chunks) / (1 - HIGH_FREE)) * SLOT_BYTES
        settings = {"cold": cold, "policy": {"name": "lru"}}
        socket_path = stack.enter_context(sidecar(warm_bytes, settings=settings))
        engines = {
            mode: stack.enter_context(
                EngineProcess(_job(mode, model, context_tokens, socket_path, lease_chunks), folder / f"{mode}.log")
            )
            for mode in MODES
        }
        with console.status("starting three engines"):
            for engine in engines.values():
                engine.wait_ready()
        run = _Run(engines, socket_path, requests, prefix_tokens)
        with console.status("computing the prefixes once"):
            run.fill()
        for number in range(WARM_UP_ROUNDS + rounds):
            console.print(f"round {number + 1} of {WARM_UP_ROUNDS + rounds}")
            run.round(counted=number >= WARM_UP_ROUNDS)
    return Result(
        describe_machine(),
        (load_before, os.getloadavg()[0]),
        requests,
        rounds,
        prefix_tokens,
        prefix_tokens * TOKEN_BYTES,
        list(run.modes.values()),
        run.tokens_equal,
    )


def report(result: Result, console: Console) -> None:
    """A table for people."""
    table = Table(
        title=f"time to the first token, {result.requests} requests queued, prefixes of {result.prefix_tokens} tokens "
        f"({result.prefix_bytes / 2**20:.0f} MiB) in cold pages, {result.rounds} rounds",
        title_justify="left",
    )
    for heading in ("load", "p50 ms", "p99 ms", "cached", "from cold"):
        table.add_column(heading, justify="left" if heading == "load" else "right", no_wrap=True)
    names = {"arrival": "at arrival", "scheduled": "when scheduled", "recompute": "none: recompute"}
    for mode in result.modes:
        times = (f"{mode.ttft_p50_s * 1e3:,.0f}", f"{mode.ttft_p99_s * 1e3:,.0f}")
        table.add_row(names[mode.mode], *times, f"{mode.cached_tokens:,.0f}", f"{mode.loaded_chunks:.1f}")
    console.print(table)
    before, after = result.load_average
    console.print(f"load average {before:.1f} before, {after:.1f} after, of {result.machine['cores']} cores")
    console.print("all modes answered the same" if result.tokens_equal else "THE ANSWERS DIFFER")


def to_json(result: Result) -> dict[str, object]:
    """Plain data for `--json`."""
    document: dict[str, object] = asdict(result)
    document["modes"] = [
        asdict(mode) | {"ttft_p50_s": mode.ttft_p50_s, "ttft_p99_s": mode.ttft_p99_s} for mode in result.modes
    ]
    return document


class _Run:
    """The engines' turns."""

    def __init__(self, engines: dict[str, EngineProcess], socket_path: Path, requests: int, prefix_tokens: int) -> None:
        self.modes = {mode: Mode(mode) for mode in MODES}
        self.tokens_equal = True
        self._engines = engines
        self._socket_path = socket_path
        self._random = Random(5)
        self._sets = [[self._tokens(prefix_tokens) for _ in range(requests)] for _ in range(SETS)]
        self._turns = cycle(range(SETS))
        self._counted = 0

    def fill(self) -> None:
        """All sets are computed and stored, no faster than they are demoted, until cold has all of them."""
        self._wait(lambda: bool(status(self._socket_path)["mover"]["ready"]))
        for prefixes in self._sets * 2:
            for prefix in prefixes:
                self._engines["arrival"].ask([prefix + self._tokens(1)], 1)
                self._idle()

    def round(self, *, counted: bool) -> None:
        """Every mode asks the sets one after the other."""
        questions = [[prefix + self._tokens(NEW_TOKENS) for prefix in prefixes] for prefixes in self._sets]
        answers: list[list[Answers]] = [[] for _ in range(SETS)]
        loading = [mode for mode in MODES if mode != "recompute"]
        if self._counted % 2:
            loading.reverse()
        for mode in loading:
            for number in range(SETS):
                answers[number].append(self._ask(mode, questions[number], counted=counted))
        if counted:
            # Computing again takes long, and no state: one of the sets will do.
            number = next(self._turns)
            answers[number].append(self._ask("recompute", questions[number], counted=True))
            self._counted += 1
        for of_set in answers:
            self.tokens_equal &= all(other.tokens == of_set[0].tokens for other in of_set)

    def _ask(self, mode: str, questions: Sequence[Sequence[int]], *, counted: bool) -> Answers:
        self._idle()
        before = self._promoted_bytes()
        answers = self._engines[mode].ask(questions, ANSWER_TOKENS)
        self._idle()
        if counted:
            told = self.modes[mode]
            told.ttft_s += answers.ttft_s
            share = len(answers.ttft_s) / len(told.ttft_s)
            cached = sum(answers.cached) / len(questions)
            loaded = (self._promoted_bytes() - before) / (CHUNK_TOKENS * TOKEN_BYTES) / len(questions)
            told.cached_tokens += share * (cached - told.cached_tokens)
            told.loaded_chunks += share * (loaded - told.loaded_chunks)
        return answers

    def _promoted_bytes(self) -> float:
        moved: dict[str, float] = status(self._socket_path)["counters"][MOVED_BYTES]
        return moved.get("promote", 0.0)

    def _idle(self) -> None:
        """The mover has nothing to do."""
        self._wait(lambda: not status(self._socket_path)["slots"]["demoting"])

    def _wait(self, condition: Callable[[], bool]) -> None:
        until_s = monotonic() + IDLE_DEADLINE_S
        while not condition():
            if monotonic() > until_s:
                raise Unreachable(f"the sidecar is busy for more than {IDLE_DEADLINE_S:.0f} s")
            select.select([], [], [], 0.05)

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(3, VOCABULARY) for _ in range(count)]


def _job(mode: str, model: Path, context_tokens: int, socket_path: Path, lease_chunks: int) -> dict[str, object]:
    """One request at a time: a batch's composition changes the order of float additions, and so the tokens."""
    engine = {"sidecar": "external", "chunk_tokens": CHUNK_TOKENS, "lease_chunks": lease_chunks, "prefetch": mode}
    transfer = {
        "kv_connector": "TieredKVConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"tieredkv": {"socket": str(socket_path), "engine": engine}},
    }
    options = {
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "dtype": "float32",
        "max_model_len": context_tokens,
        "max_num_seqs": 1,
        "block_size": BLOCK_TOKENS,
        "num_gpu_blocks_override": 2 * (context_tokens // BLOCK_TOKENS + 2),
        "distributed_executor_backend": "uni",
        "seed": 0,
    }
    return {"model": str(model), "transfer": None if mode == "recompute" else transfer, "options": options}
