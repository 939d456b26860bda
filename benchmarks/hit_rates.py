"""The hit rates of the README, from traces given by path: python benchmarks/hit_rates.py TRACE... [--out FOLDER].

Every policy beside LRU and the bounds, at the capacities of the README's table. Writes hit_rates.md (the
table, with its recipe), hit_rates.json (all results) and, with matplotlib, hit_rates.png.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from tieredkv.bench.machine import describe_machine
from tieredkv.cli.progress import progress_bar
from tieredkv.cli.report import write_json
from tieredkv.cli.simulate_tables import print_comparison
from tieredkv.config import PolicyConfig
from tieredkv.errors import ConfigError, TieredKVError
from tieredkv.policy import POLICIES
from tieredkv.sim.capacities import parse_capacities
from tieredkv.sim.comparison import BOUNDS, Comparison, Plan, compare
from tieredkv.sim.comparison_plot import plot_comparisons
from tieredkv.sim.replays import cores
from tieredkv.sim.traces import read_trace

CAPACITIES = "0.003,0.01,0.03,0.1,0.2,0.4"


def main() -> int:
    arguments = _arguments()
    policies = [PolicyConfig(name=name.strip()) for name in arguments.policies.split(",")]
    plan = Plan(policies, BOUNDS, seed=arguments.seed)
    capacities = parse_capacities(arguments.capacity)
    found: list[Comparison] = []
    for path in arguments.traces:
        with progress_bar(f"read {path.name}") as on_progress:
            trace = read_trace(path, on_progress=on_progress)
        sizes = [capacity.size(trace.unique_blocks, None) for capacity in capacities]
        with progress_bar(f"replay {path.name}") as on_refs:
            found.append(compare(trace, plan, sizes, jobs=arguments.jobs or cores(), on_refs=on_refs))
        print_comparison(found[-1], Console())
    recipe = {
        **describe_machine(),
        "seed": arguments.seed,
        "command": f"python benchmarks/hit_rates.py {' '.join(path.name for path in arguments.traces)} "
        f"--policies {arguments.policies} --capacity {arguments.capacity}",
        "config": [policy.model_dump(mode="json", by_alias=True) for policy in policies],
    }
    out: Path = arguments.out
    write_json(str(out / "hit_rates.json"), [comparison.to_json() | {"recipe": recipe} for comparison in found])
    (out / "hit_rates.md").write_text(_markdown(found, recipe))
    if find_spec("matplotlib"):
        plot_comparisons(found, out / "hit_rates.png")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", metavar="TRACE", nargs="+", type=Path, help="in Mooncake's format")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path(), help="where to write (default: here)")
    names = ["lru", *sorted(name for name in POLICIES if name not in {"lru", "gix"}), "gix"]
    parser.add_argument("--policies", default=",".join(names), help=f"with commas (default: {','.join(names)})")
    parser.add_argument("--capacity", default=CAPACITIES, help=f"with commas (default: {CAPACITIES})")
    parser.add_argument("--seed", type=int, default=1, help="(default: 1)")
    parser.add_argument("--jobs", type=int, help="processes at a time (default: one per core)")
    arguments = parser.parse_args()
    if not arguments.out.is_dir():
        raise ConfigError(f"--out {arguments.out}: no such folder; name one that exists")
    return arguments


def _markdown(found: list[Comparison], recipe: dict[str, object]) -> str:
    """A table for each trace: block hit rate in percent, and how much of the way from LRU to MIN that is."""
    lines: list[str] = []
    for comparison in found:
        by_policy: dict[str, list[str]] = {}
        us: dict[str, float] = {}
        fractions: list[float] = []
        for result in comparison.results:
            gap = result.lru_to_min_gap_percent
            cell = f"{100 * result.block_hit_rate:.2f}"
            if gap is not None and result.policy not in {"lru", *BOUNDS}:
                cell += f" ({round(gap):+d} %)"
            by_policy.setdefault(result.policy, []).append(cell)
            us[result.policy] = max(us.get(result.policy, 0.0), result.us_per_block_ref)
            if result.policy == comparison.results[0].policy:
                fractions.append(result.capacity_fraction)
        title = f"{comparison.requests:,} requests, {comparison.block_refs:,} references to "
        title += f"{comparison.unique_blocks:,} blocks of {comparison.block_tokens} tokens; block hit rate in %"
        lines += [
            f"**{comparison.trace}**: {title}",
            "",
            f"| policy | {' | '.join(f'{100 * fraction:g} %' for fraction in fractions)} | us per reference |",
            f"|---|{'---|' * (len(fractions) + 1)}",
        ]
        for policy, cells in by_policy.items():
            time = "" if policy in BOUNDS else f"{us[policy]:.1f}"
            lines.append(f"| {policy} | {' | '.join(cells)} | {time} |")
        lines.append("")
    lines.append(
        f"`{recipe['command']}`, seed {recipe['seed']}, commit {recipe['commit']}, Python {recipe['python']}, "
        f"{recipe['cores']} x {recipe['cpu']}"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TieredKVError as error:
        sys.exit(f"error: {error}")
