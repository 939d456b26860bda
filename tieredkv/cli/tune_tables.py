"""What `tieredkv tune` shows a person."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tieredkv.config.units import approximate_size

if TYPE_CHECKING:
    from tieredkv.sim.tune_result import Point, Tuning, Verdict


def print_tuning(tuning: "Tuning", console: Console) -> None:
    """The sizes on the held-out part, the policy, and the verdicts."""
    from tieredkv.sim.tune_result import policy_words

    table = Table(title=f"{tuning.trace}, held-out {1 - tuning.split:.0%} of the time")
    table.add_column("memory")
    for heading in ("hits", "in GPU", "mean TTFT", "p99 TTFT"):
        table.add_column(heading, justify="right")
    _row(table, "GPU alone", tuning.without, False)
    for point in tuning.curve:
        _row(table, f"warm {approximate_size(point.warm_bytes)}", point, point == tuning.chosen)
    if tuning.cold is not None:
        for point in tuning.cold.curve:
            _row(table, f"and cold {approximate_size(point.cold_bytes)}", point, point == tuning.cold.chosen)
    table.add_row("infinite", f"{tuning.infinite_hit_rate[1]:.1%}", "", "", "")
    console.print(table)
    console.print(f"policy: {policy_words(tuning.policy)}", highlight=False)
    _verdict(f"warm tier of {approximate_size(tuning.chosen.warm_bytes)}", tuning.warm, console)
    if tuning.cold is not None:
        _verdict(f"cold tier of {approximate_size(tuning.cold.chosen.cold_bytes)}", tuning.cold.verdict, console)


def _row(table: Table, name: str, point: "Point", chosen: bool) -> None:
    figures = point.held_out
    table.add_row(
        f"{name} <- chosen" if chosen else name,
        f"{figures.hit_rate:.1%}",
        f"{figures.hot_hit_rate:.1%}",
        f"{figures.mean_ttft_s * 1e3:,.0f} ms",
        f"{figures.p99_ttft_s * 1e3:,.0f} ms",
        style="bold green" if chosen else None,
    )


def _verdict(name: str, verdict: "Verdict", console: Console) -> None:
    word = "[green]worth it[/]" if verdict.worth_it else "[red]not worth it[/]"
    console.print(f"{name}: {word}", highlight=False)
    for reason in verdict.reasons:
        console.print(f"  {reason}", highlight=False)
