import subprocess
import sys

import pytest

from tieredkv import __version__

from .conftest import Cli

COMMANDS = [
    "serve",
    "sidecar",
    "status",
    "stop",
    "hint",
    "prefetch",
    "doctor",
    "demo",
    "config check",
    "config show",
    "config schema",
    "config example",
    "bench scheduler",
    "bench transfer",
    "bench index",
    "bench remote",
    "bench prefetch",
    "trace record",
    "trace verify",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(cli: Cli, command: str) -> None:
    outcome = cli(*command.split(), "--help")
    assert outcome.code == 0
    assert f"Example: tieredkv {command}" in outcome.out


def test_help_lists_every_command(cli: Cli) -> None:
    out = cli("--help").out
    assert all(command.split()[0] in out for command in COMMANDS)


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"tieredkv {__version__}\n"


def test_help_loads_nothing_heavy() -> None:
    """The start is fast because of what is not imported; a time limit would be a flaky way to say so."""
    program = (
        "import sys\n"
        "from tieredkv.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'pydantic', 'msgspec', 'yaml', 'vllm', 'torch', 'vineyard', 'rich.console'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.splitlines()[-1] == "loaded []"


def test_the_module_runs_as_the_command_does() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tieredkv.cli", "config", "check", "/nonexistent.yaml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 2
    assert run.stderr == (
        "tieredkv: error: /nonexistent.yaml: cannot read the configuration: No such file or directory\n"
    )
