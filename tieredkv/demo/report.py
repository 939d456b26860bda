"""The demo's result: what was measured, the verdict, and how both are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tieredkv.demo.metrics_reading import PromptTokens
from tieredkv.demo.player import Answer


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run of the whole workload: with tieredkv or without."""

    answers: tuple[Answer, ...]
    tokens: PromptTokens
    tokens_after_restart: PromptTokens  # of the first turn of each conversation after the restart
    moved_bytes: Mapping[str, int]

    def ttft_s(self, fraction: float) -> float:
        return percentile([answer.ttft_s for answer in self.answers], fraction)


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Both runs, side by side."""

    without: RunResult
    with_tier: RunResult

    def differing_answers(self) -> list[int]:
        """Indices of the answers whose tokens differ."""
        pairs = zip(self.without.answers, self.with_tier.answers, strict=True)
        return [index for index, (one, other) in enumerate(pairs) if one.token_ids != other.token_ids]

    def problems(self) -> list[str]:
        """Why the demo did not show what it should; empty when it did."""
        problems: list[str] = []
        if differing := self.differing_answers():
            first = differing[0]
            margin = self.without.answers[first].margin
            problems.append(
                f"{len(differing)} of {len(self.without.answers)} answers differ, from number {first + 1} on"
                f" (there the closest choice between two tokens was {margin:.2g} in log probability)"
            )
        if not self.with_tier.tokens.warm:
            problems.append("no prompt token was served from warm")
        if not self.with_tier.tokens_after_restart.warm:
            problems.append("after the restart no prompt token was served from warm")
        return problems

    def as_json(self) -> dict[str, object]:
        """The document of `tieredkv demo --json`; counts are those of the run with tieredkv."""
        tokens = self.with_tier.tokens
        return {
            "tokens_equal": not self.differing_answers(),
            "tokens_asked": tokens.asked,
            "tokens_hot": tokens.hot,
            "tokens_warm": tokens.warm,
            "tokens_recomputed": tokens.recomputed,
            "warm_after_restart": self.with_tier.tokens_after_restart.warm,
            "ttft_s": {
                name: {"p50": round(run.ttft_s(0.5), 4), "p99": round(run.ttft_s(0.99), 4)}
                for name, run in (("without", self.without), ("with", self.with_tier))
            },
        }

    def as_table(self) -> RenderableType:
        """The closing table, and the problems below it."""
        table = Table(title="The same conversations, vLLM killed and restarted in between", title_justify="left")
        table.add_column("")
        table.add_column("without", justify="right")
        table.add_column("with tieredkv", justify="right")
        runs = (self.without, self.with_tier)
        table.add_row("prompt tokens asked", *(f"{run.tokens.asked:,}" for run in runs))
        table.add_row("  served hot", *(_share(run.tokens.hot, run.tokens.asked) for run in runs))
        table.add_row("  served warm", *(_share(run.tokens.warm, run.tokens.asked) for run in runs))
        table.add_row("  recomputed", *(_share(run.tokens.recomputed, run.tokens.asked) for run in runs))
        table.add_row(
            "warm just after the restart",
            *(_share(run.tokens_after_restart.warm, run.tokens_after_restart.asked) for run in runs),
        )
        table.add_section()
        for name, fraction in (("p50", 0.5), ("p99", 0.99)):
            table.add_row(f"time to first token {name}", *(f"{run.ttft_s(fraction) * 1e3:,.0f} ms" for run in runs))
        if moved := self.with_tier.moved_bytes:
            table.add_section()
            for movement, name in (("store", "hot to warm"), ("load", "warm to hot")):
                table.add_row(f"moved {name}", "", f"{moved.get(movement, 0) / 2**20:,.1f} MiB")
        table.add_section()
        equal = not self.differing_answers()
        count = len(self.without.answers)
        verdict = Text("yes" if equal else "NO", style="bold green" if equal else "bold red")
        table.add_row(f"answer tokens equal ({count} answers)", "", verdict)
        return Group(table, *(Text(f"problem: {problem}", style="red") for problem in self.problems()))


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value below which `fraction` (0..1) of the sorted values lie, linearly interpolated."""
    assert values
    assert 0 <= fraction <= 1
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _share(tokens: int, asked: int) -> str:
    return f"{tokens:,} ({tokens / asked:4.0%})" if asked else "0"
