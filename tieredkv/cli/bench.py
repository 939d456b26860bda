"""`tieredkv bench`: what tiering costs, beside a peer or a floor measured in the same run."""

from importlib import import_module
from typing import Annotated, Final

import typer

from tieredkv.cli import settings
from tieredkv.cli.report import STANDARD_OUTPUT, check_destination, write_json
from tieredkv.errors import ConfigError

_CHUNK_BYTES_MAX: Final = 64 * 1024 * 1024

app = typer.Typer(help="Measure, with the peer or the floor in the same run.", no_args_is_help=True)


@app.command(epilog="Example: tieredkv bench scheduler --json scheduler.json")
def scheduler(json: settings.JsonFile = None) -> None:
    """Time on vLLM's scheduler thread per chunk, against vLLM's own offloading managers."""
    _run("scheduler", json)


@app.command(epilog="Example: tieredkv bench transfer --json -")
def transfer(json: settings.JsonFile = None) -> None:
    """Copies between KV pages and slots, against one contiguous copy of the same bytes."""
    _run("transfer", json)


@app.command(epilog="Example: tieredkv bench index --entries 1000000 --json -")
def index(
    entries: Annotated[int, typer.Option(min=1, help="Chunks that the other nodes hold.")] = 1_000_000,
    keys: Annotated[int, typer.Option(min=1, help="Keys of one look-up.")] = 1000,
    json: settings.JsonFile = None,
) -> None:
    """Look-ups in what the other nodes hold, and following their changes, against a dictionary."""
    _run("index", json, entries=entries, keys=keys)


@app.command(epilog="Example: tieredkv bench remote --json -")
def remote(
    sizes: Annotated[
        str, typer.Option(metavar="LIST", help="Sizes of chunks, with commas between them.")
    ] = "256KiB,1MiB,2MiB,4MiB",
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 15,
    peers: Annotated[
        str, typer.Option(metavar="LIST", help="Also measure these, if they are installed: mooncake,redis.")
    ] = "",
    json: settings.JsonFile = None,
) -> None:
    """Chunks of another process's vineyardd into slots, against a raw socket and one copy of the same bytes."""
    from tieredkv.bench.remote_peers import check_peers

    chosen = tuple(filter(None, peers.split(",")))
    check_peers(chosen)
    _run("remote", json, sizes=tuple(map(_chunk_bytes, sizes.split(","))), rounds=rounds, peers=chosen)


@app.command(epilog="Example: tieredkv bench prefetch --json -")
def prefetch(
    requests: Annotated[int, typer.Option(min=2, max=64, help="Requests queued at once.")] = 6,
    prefix_tokens: Annotated[
        int, typer.Option(min=128, max=8192, metavar="TOKENS", help="Prompt tokens of each that lie in cold pages.")
    ] = 1024,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each is measured.")] = 4,
    json: settings.JsonFile = None,
) -> None:
    """Time to the first token of queued requests, loaded at arrival, when scheduled, and computed again."""
    _run("prefetch", json, requests=requests, prefix_tokens=prefix_tokens, rounds=rounds)


@app.command(epilog="Example: tieredkv bench faults --seed 1 --rounds 42 --json -")
def faults(
    seed: Annotated[int, typer.Option(min=0, help="Which faults, in which order, where.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Faults, one after the other.")] = 42,
    kinds: Annotated[str, typer.Option(metavar="LIST", help="Only these, with commas between them.")] = "",
    json: settings.JsonFile = None,
) -> None:
    """Three real nodes under load while processes, networks and memory fail: no byte may ever be wrong."""
    _run("faults.run", json, seed=seed, rounds=rounds, kinds=tuple(filter(None, kinds.split(","))))


@app.command(epilog="Example: tieredkv bench soak --minutes 20 --json soak.json")
def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 60.0,
    seed: Annotated[int, typer.Option(min=0, help="Which faults, in which order, where.")] = 1,
    json: settings.JsonFile = None,
) -> None:
    """The load and the faults of `bench faults` for long: memory, descriptors and slots at the start and at the end."""
    _run("faults.soak", json, minutes=minutes, seed=seed)


def _chunk_bytes(text: str) -> int:
    from tieredkv.config.units import parse_size

    try:
        size_bytes = parse_size(text)
    except ValueError as error:
        raise ConfigError(f"--sizes {text}: {error}") from None
    if not 0 < size_bytes <= _CHUNK_BYTES_MAX:
        raise ConfigError(f"--sizes {text}: write sizes from 1 B to 64 MiB")
    return size_bytes


def _run(name: str, destination: str | None, **options: object) -> None:
    """A benchmark is a module with measure(console, **options), report(result, console) and to_json(result)."""
    check_destination(destination)
    from rich.console import Console

    module = import_module(f"tieredkv.bench.{name}")
    result = module.measure(Console(stderr=True), **options)
    if destination is not None:
        write_json(destination, module.to_json(result))
    if destination != STANDARD_OUTPUT:
        module.report(result, Console())
