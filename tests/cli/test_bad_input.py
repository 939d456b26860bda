"""Whatever a person mistypes: one clear line for each error, exit code 2, never a traceback."""

from pathlib import Path

import pytest

from .conftest import Cli

FLAGS = [
    ("sidecar --warm lots", "flag: warm.size: 'lots': not a size; write a size such as 64GiB"),
    ("sidecar --warm 1KiB", "the warm tier needs at least 1MiB"),
    ("sidecar --http 9400", "write HOST:PORT"),
    ("sidecar --log-level loud", "must be one of debug, info, warning or error"),
    ("sidecar --set warm.sise=3GiB", "flag: warm.sise: unknown key; did you mean warm.size?"),
    ("sidecar --set warm.size", "no value; write --set KEY=VALUE"),
    ("sidecar --config /nonexistent.yaml", "cannot read the configuration"),
    ("sidecar --wram 3GiB", "No such option: --wram"),
    ("sidecar extra", "unexpected extra argument"),
    ("sidecra", "No such command 'sidecra'. Did you mean 'sidecar'?"),
    ("config chek x", "No such command 'chek'. Did you mean 'check'"),
    ("config check", "Missing argument 'FILE'"),
    ("config show --socket /" + "x" * 120, "longer than the 107 bytes"),
    ("status --json", "'--json' requires an argument"),
    ("status --json /nonexistent/status.json", "name a file in a folder that exists"),
    ("hint --closed", "Missing option '--session'"),
    ("hint --session c42", "nothing is said; give --closed, --return-within, --keep or --one-shot"),
    ("hint --session c42 --return-within 60", "--return-within 60: not a duration"),
    ("hint --session c42 --return-within 1000h", "more than nothing and at most 720h"),
    ("hint --session " + "x" * 257 + " --keep", "--session: 257 characters; at most 256"),
    ("serve", "Missing argument"),
    ("serve --warm 3x -- vllm serve M", "not a size"),
    ("serve -- vllm serve M --kv-transfer-config {}", "serve sets --kv-transfer-config by itself"),
    ("serve -- vllm serve M --kv_transfer_config={}", "serve sets --kv-transfer-config by itself"),
    ("serve -- vllm serve M --kv-transfer-config.kv_role=kv_both", "serve sets --kv-transfer-config by itself"),
    ("serve -- vllm serve M --kv-offloading-size 3", "leave --kv-offloading-size out"),
    ("serve --no-checks -- /nonexistent/vllm", "cannot run it: No such file or directory"),
]


@pytest.mark.parametrize(("words", "message"), FLAGS, ids=[words[:60] for words, _ in FLAGS])
def test_each_broken_flag_is_one_clear_line(cli: Cli, words: str, message: str) -> None:
    outcome = cli(*words.split())
    assert outcome.code == 2
    (line,) = outcome.complaints()
    assert message in line


@pytest.mark.parametrize("command", ["sidecar", "status", "stop", "config show", "serve --dry-run --no-checks -- ls"])
def test_each_broken_key_of_a_file_is_one_clear_line_in_every_command(cli: Cli, command: str, tmp_path: Path) -> None:
    path = tmp_path / "tieredkv.yaml"
    path.write_text("warm:\n  sise: 3GiB\n  prefault: 7\nengine: {lookup_deadline: 50}\n")
    first, *others = command.split()
    second = [others.pop(0)] if first == "config" else []
    outcome = cli(first, *second, "--config", path, *others)
    assert outcome.code == 2
    assert [line.partition(": ")[0] for line in outcome.complaints()] == [f"{path}:2", f"{path}:3", f"{path}:4"]


def test_a_broken_variable_is_one_clear_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIEREDKV_WARM_SIZE", "much")
    outcome = cli("config", "show")
    assert outcome.code == 2
    (line,) = outcome.complaints()
    assert line == (
        "environment TIEREDKV_WARM_SIZE: warm.size: 'much': not a size; write a size such as 64GiB, 64Gi, 512MB, "
        "or a whole number of bytes"
    )


def test_nobody_at_the_socket_is_exit_code_3(cli: Cli, tmp_path: Path) -> None:
    for command in ("status", "stop"):
        outcome = cli(command, "--socket", tmp_path / "none.sock")
        assert outcome.code == 3
        assert outcome.complaints() == [
            f"{tmp_path}/none.sock: no sidecar runs there; start one with: tieredkv sidecar"
        ]
