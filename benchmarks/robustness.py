"""What a policy loses to LRU on generated loads that break policies: python benchmarks/robustness.py [--policy gix].

Floods of prompts that never return, trunks that are edited, think times that are shorter and longer than
those the shapes were made for. Everything is generated from the seed; no downloads.
"""

import argparse
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from tieredkv.bench.machine import describe_machine
from tieredkv.cli.progress import progress_bar
from tieredkv.cli.report import check_destination, write_json
from tieredkv.config import PolicyConfig
from tieredkv.errors import TieredKVError
from tieredkv.sim.replays import cores
from tieredkv.sim.robustness import FRACTIONS, LOADS, Stressed, stress


def main() -> int:
    arguments = _arguments()
    policy = PolicyConfig(name=arguments.policy)
    found: list[Stressed] = []
    for load in arguments.loads or LOADS:
        for seed in arguments.seeds:
            with progress_bar(f"{load}, seed {seed}") as on_refs:
                found.append(
                    stress(policy, load, requests=arguments.requests, seed=seed, jobs=cores(), on_refs=on_refs)
                )
    recipe = {
        **describe_machine(),
        "requests": arguments.requests,
        "seeds": arguments.seeds,
        "config": policy.model_dump(mode="json", by_alias=True),
    }
    _print(found, policy.name, recipe)
    if arguments.json is not None:
        write_json(arguments.json, {"recipe": recipe, "results": [asdict(each) for each in found]})
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default=PolicyConfig().name, help="name, or package.module:name of your own")
    parser.add_argument("--load", action="append", dest="loads", choices=LOADS, help="only this one; may be repeated")
    parser.add_argument("--requests", type=int, default=10_000, help="of each load (default: 10000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="one trace for each (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write all results")
    arguments = parser.parse_args()
    check_destination(arguments.json)
    return arguments


def _print(found: list[Stressed], policy: str, recipe: dict[str, object]) -> None:
    table = Table(
        title=f"{policy} - lru, points of block hit rate, at % of the unique blocks; {recipe['requests']} requests",
        caption=f"commit {recipe['commit']}, seeds {recipe['seeds']}",
    )
    table.add_column("load")
    for heading in ("seed", *(f"{100 * fraction:g} %" for fraction in FRACTIONS), "worst"):
        table.add_column(heading, justify="right")
    for each in found:
        rates = [result.block_hit_rate for result in each.comparison.results]
        gains = [own - lru for lru, own in zip(rates[: len(FRACTIONS)], rates[len(FRACTIONS) :], strict=True)]
        table.add_row(each.load, str(each.seed), *(f"{100 * gain:+.2f}" for gain in gains), f"{-100 * each.loss:+.2f}")
    Console().print(table)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TieredKVError as error:
        sys.exit(f"error: {error}")
