"""What `tieredkv trace stats` shows a person."""

from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tieredkv.sim.stats import Spread, TraceStats

_QUANTILES: Final = ("10 %", "25 %", "50 %", "75 %", "90 %", "99 %", "max")


def print_stats(stats: "TraceStats", console: Console) -> None:
    """Three tables: the figures, the spreads, and how sessions go on."""
    figures = Table(title=stats.trace, show_header=False, title_justify="left")
    figures.add_column()
    figures.add_column(justify="right")
    rate = f", {stats.requests_per_s:.2f}/s" if stats.requests_per_s is not None else ""
    sessions = "" if stats.sessions_named else " (inferred from the chains)"
    for name, text in (
        ("requests", f"{stats.requests:,} in {stats.duration_s:,.0f} s{rate}"),
        ("tokens in / out", f"{stats.input_tokens:,} / {stats.output_tokens:,}"),
        ("block references", f"{stats.block_refs:,} of {stats.block_tokens} tokens (full blocks)"),
        ("unique blocks", f"{stats.unique_blocks:,}"),
        ("hit rate of an infinite cache", f"{stats.infinite_hit_rate:.4f}"),
        ("blocks used once", f"{stats.one_hit_share_of_blocks:.1%}"),
        ("references above a branch", f"{stats.branched_share:.1%}"),
        ("sessions", f"{stats.sessions:,}{sessions}"),
        ("trunks (3 continuations or more)", f"{stats.trunks:,}"),
    ):
        figures.add_row(name, text)
    console.print(figures)
    spreads = Table("quantile", *_QUANTILES)
    for column in spreads.columns[1:]:
        column.justify = "right"
    for name, spread in (
        ("blocks per request", stats.chain_blocks),
        ("reuse distance, blocks", stats.reuse_distance_blocks),
        ("reuse time, s", stats.reuse_time_s),
        ("turns per session", stats.turns_per_session),
        ("time to next turn, s", stats.think_time_s),
    ):
        spreads.add_row(name, *_cells(spread))
    console.print(spreads)
    if stats.continues:
        odds = Table("turn", *(str(turn) for turn in range(len(stats.continues))))
        odds.add_row("P(next)", *(f"{share:.2f}" for share in stats.continues))
        console.print(odds)
    if stats.largest_trunks:
        trunks = Table("trunk of blocks", "continuations", "uses")
        for column in trunks.columns:
            column.justify = "right"
        for trunk in stats.largest_trunks:
            trunks.add_row(f"{trunk.depth_blocks:,}", f"{trunk.children:,}", f"{trunk.uses:,}")
        console.print(trunks)


def _cells(spread: "Spread") -> list[str]:
    values = (spread.p10, spread.p25, spread.p50, spread.p75, spread.p90, spread.p99, spread.max)
    return ["-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values]
