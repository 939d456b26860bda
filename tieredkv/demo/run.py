"""Runs the demo: two vLLM servers over one model, without and with tieredkv, killed and restarted together.

Both servers start at the same time, because a start takes longer than everything else; while requests are
timed, neither server starts and the other one is idle.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console

from tieredkv.demo.failure import DemoFailed
from tieredkv.demo.metrics_reading import PromptTokens, read_moved_bytes, read_prompt_tokens
from tieredkv.demo.model import make_llama
from tieredkv.demo.player import Answer, Player
from tieredkv.demo.processes import POLL_S, Guard
from tieredkv.demo.progress import Progress
from tieredkv.demo.report import DemoReport, RunResult
from tieredkv.demo.server import CONNECTOR_FLAG, HotTier, VllmServer
from tieredkv.demo.sidecar import DemoSidecar
from tieredkv.demo.surroundings import ended_by_signals, work_dir
from tieredkv.demo.tokenizer import VOCAB_TOKENS, make_tokenizer, sayable_tokens
from tieredkv.demo.workload import Shape, Turn, Workload, make_workload

WARM_BYTES: Final = 512 * 2**20
METRICS_WAIT_S: Final = 10.0
# What a chat template adds to the text: a few markers for each message.
MARKERS_PER_TURN_TOKENS: Final = 4


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a user may choose. `keep` is a directory for model and logs; without it they are removed."""

    seed: int = 7
    keep: Path | None = None
    shape: Shape = field(default_factory=Shape)
    hot: HotTier = field(default_factory=HotTier)


def run_demo(options: DemoOptions, console: Console) -> DemoReport:
    """Run all of it, progress on `console`. Raises DemoFailed; leaves no process behind, however it ends."""
    shape = options.shape
    longest_tokens = shape.longest_prompt_chars() + (shape.rounds + 1) * MARKERS_PER_TURN_TOKENS
    assert longest_tokens <= options.hot.context_tokens <= options.hot.tokens
    with ExitStack() as stack:
        stack.enter_context(ended_by_signals())
        guard = stack.enter_context(Guard())
        work = stack.enter_context(work_dir(options.keep, guard, console))
        show = stack.enter_context(Progress(console))
        return _Demo(options, work, guard, show, stack).run()


class _Demo:
    """The steps of one demo; everything started is ended through `stack`."""

    def __init__(self, options: DemoOptions, work: Path, guard: Guard, show: Progress, stack: ExitStack) -> None:
        self._options = options
        self._work = work
        self._guard = guard
        self._show = show
        self._stack = stack

    def run(self) -> DemoReport:
        model = self._make_model()
        workload = make_workload(self._options.shape, seed=self._options.seed)
        sidecar = DemoSidecar(
            self._runtime_dir(), warm_bytes=WARM_BYTES, log=self._work / "sidecar.log", guard=self._guard
        )
        self._stack.enter_context(sidecar)
        with self._show.step("Starting the sidecar"):
            sidecar.start()
        without = self._server("without tieredkv", model, flags=(), environ={})
        with_tier = self._server(
            "with tieredkv", model, flags=("--kv-transfer-config", CONNECTOR_FLAG), environ=sidecar.environ
        )
        runs = (_Run(without, workload, self._show), _Run(with_tier, workload, self._show))
        self._start_servers(runs, "Starting vLLM without and with tieredkv")
        for run in runs:
            run.play(workload.before_restart())
        self._start_servers(runs, "Killing both (-9), starting them again")
        for run in runs:
            run.play_just_after_restart(workload.just_after_restart())
        for run in runs:
            run.play(workload.rest())
        for run in runs:
            run.kill_server()
        return DemoReport(without=runs[0].result(), with_tier=runs[1].result())

    def _make_model(self) -> Path:
        # Wide enough that computing a prefix costs clearly more than copying its KV (16 KiB a token).
        with self._show.step("Making a model with random weights"):
            path = make_llama(
                self._work / "model",
                layers=8,
                hidden=512,
                heads=8,
                kv_heads=4,
                intermediate=1408,
                vocab=VOCAB_TOKENS,
                context_tokens=self._options.hot.context_tokens,
                sayable=sayable_tokens(),
                seed=self._options.seed,
            )
            return make_tokenizer(path, context_tokens=self._options.hot.context_tokens)

    def _runtime_dir(self) -> Path:
        # Not below the work directory: the path of a Unix socket has room for about 100 characters.
        path = Path(tempfile.mkdtemp(prefix="tieredkv-demo-"))
        self._guard.remove(path)
        self._stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    def _server(self, name: str, model: Path, *, flags: Sequence[str], environ: dict[str, str]) -> VllmServer:
        log = self._work / f"vllm-{name.partition(' ')[0]}.log"
        server = VllmServer(
            name, model, hot=self._options.hot, flags=flags, environ=environ, log=log, guard=self._guard
        )
        self._stack.callback(server.kill)
        return server

    def _start_servers(self, runs: Sequence["_Run"], text: str) -> None:
        with self._show.step(text):
            for run in runs:
                run.kill_server()
            for run in runs:
                run.server.start()
            for run in runs:
                run.server.wait_ready()
            for run in runs:
                run.warm_up()


class _Run:
    """The workload played on one server, with what its counters said before each kill."""

    def __init__(self, server: VllmServer, workload: Workload, show: Progress) -> None:
        self.server = server
        self._player = Player(workload.system, answer_tokens=workload.shape.answer_tokens)
        self._show = show
        self._answers: list[Answer] = []
        self._tokens = PromptTokens()
        self._after_restart = PromptTokens()
        self._moved_bytes: dict[str, int] = {}
        self._seen = PromptTokens()  # counters of the running server up to the last answer

    def warm_up(self) -> None:
        """Have the server do its first-time work, and leave that out of the counts."""
        asked = self._player.warm_up(self.server.url)
        self._seen = self._settled_tokens(asked)

    def play(self, turns: list[Turn]) -> PromptTokens:
        """Play the turns; returns (and adds up) where their prompt tokens came from."""
        with self._show.bar(f"Playing {len(turns)} turns {self.server.name}", len(turns)) as advance:
            answers = self._player.play(self.server.url, turns, advance)
        self._answers += answers
        now = self._settled_tokens(self._seen.asked + sum(answer.prompt_tokens for answer in answers))
        played = now - self._seen
        self._seen = now
        self._tokens += played
        return played

    def play_just_after_restart(self, turns: list[Turn]) -> None:
        self._after_restart = self.play(turns)

    def kill_server(self) -> None:
        """`kill -9`, if it runs; the counters die with it, so they are read first."""
        if not self.server.runs:
            return
        for movement, count in read_moved_bytes(self.server.metrics_text()).items():
            self._moved_bytes[movement] = self._moved_bytes.get(movement, 0) + count
        self.server.kill()

    def result(self) -> RunResult:
        return RunResult(tuple(self._answers), self._tokens, self._after_restart, self._moved_bytes)

    def _settled_tokens(self, asked: int) -> PromptTokens:
        """The counters once they include every answered request: they may follow the answers by a moment."""
        deadline_s = time.monotonic() + METRICS_WAIT_S
        while True:
            tokens = read_prompt_tokens(self.server.metrics_text())
            if tokens.asked == asked:
                return tokens
            if tokens.asked > asked or time.monotonic() > deadline_s:
                raise DemoFailed(
                    f"demo: vLLM {self.server.name} counted {tokens.asked} prompt tokens where {asked} were asked"
                )
            time.sleep(POLL_S)
