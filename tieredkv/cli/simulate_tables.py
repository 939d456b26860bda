"""Comparisons of policies as tables for people."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tieredkv.sim.comparison import BOUNDS, MIN, Comparison, Result


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Policies down, capacities across: the block hit rate, and how much of LRU's way to MIN that is."""
    by_policy: dict[str, list[Result]] = {}
    for result in comparison.results:
        by_policy.setdefault(result.policy, []).append(result)
    any_row = next(iter(by_policy.values()))
    table = Table(
        title=f"{comparison.trace}: {comparison.requests:,} requests, {comparison.block_refs:,} references to "
        f"{comparison.unique_blocks:,} blocks{_setting(comparison)}",
        caption="block hit rate, below it % of the way from LRU to MIN; us: processor time for a block reference",
        box=SIMPLE_HEAD,
    )
    table.add_column("policy", no_wrap=True)
    for result in any_row:
        table.add_column(
            f"{100 * result.capacity_fraction:.3g} %\n{result.capacity_blocks:,}", justify="right", no_wrap=True
        )
    table.add_column("us", justify="right", no_wrap=True)
    for policy, results in by_policy.items():
        slowest = max(result.us_per_block_ref for result in results)
        table.add_row(policy, *map(_cell, results), "" if policy in BOUNDS else f"{slowest:.1f}")
    for name in BOUNDS:
        if name not in by_policy:
            rates = [each.min_block_hit_rate if name == MIN else each.infinite_block_hit_rate for each in any_row]
            table.add_row(name, *(f"{rate:.4f}" for rate in rates), "", style="dim")
    console.print(table)


def _cell(result: Result) -> str:
    gap = result.lru_to_min_gap_percent
    if gap is None or result.policy in {"lru", *BOUNDS}:
        return f"{result.block_hit_rate:.4f}"
    return f"{result.block_hit_rate:.4f}\n{round(gap):+d} %"


def _setting(comparison: Comparison) -> str:
    """What is not as by default, in words."""
    first = comparison.results[0]
    words: list[str] = []
    if first.engines > 1:
        words.append(f"{first.engines} engines, {first.pool} pool, {first.routing} routing")
    if first.hints != "trace":
        words.append(f"{first.hints} hints")
    return f"\n{'; '.join(words)}" if words else ""
