import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Cli


def test_the_printed_command_shows_every_setting_and_keeps_every_flag(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "my config.yaml"
    config.write_text("")
    flags = ["--config", config, "--warm", "64Gi", "--set", "security.allowed_uids=[7, 8]", "--no-checks", "--dry-run"]
    outcome = cli("serve", *flags, "--", "vllm", "serve", "a model", "--port", "80")
    assert outcome.code == 0
    (line,) = outcome.out.splitlines()
    assert shlex.split(line) == [
        f"TIEREDKV_CONFIG={config}",
        "TIEREDKV_WARM_SIZE=64Gi",
        "TIEREDKV_SECURITY_ALLOWED_UIDS=[7, 8]",
        "vllm",
        "serve",
        "a model",
        "--port",
        "80",
        "--kv-transfer-config",
        '{"kv_connector":"TieredKVConnector","kv_role":"kv_both"}',
    ]


def test_the_separator_may_be_left_out(cli: Cli) -> None:
    words = ["serve", "--no-checks", "--dry-run", "--warm", "1Gi"]
    command = ["vllm", "serve", "M", "--port", "80"]
    assert cli(*words, *command).out == cli(*words, "--", *command).out


def test_the_printed_line_does_in_a_shell_what_serve_does(tmp_path: Path) -> None:
    """serve becomes the command; the same environment and arguments arrive when its line is pasted."""
    witness = tmp_path / "witness.py"
    witness.write_text(
        "import json, os, sys\n"
        "print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith('TIEREDKV_')}]))\n"
    )
    command = [sys.executable, "-m", "tieredkv.cli", "serve", "--no-checks", "--warm", "1Gi"]
    command += ["--set", "security.allowed_uids=[7, 8]", "--", sys.executable, str(witness), "two words"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    printed, seen = run.stdout.splitlines()
    pasted = subprocess.run(["bash", "-c", printed], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(pasted.stdout) == json.loads(seen)
    arguments, variables = json.loads(seen)
    assert arguments[:2] == ["two words", "--kv-transfer-config"]
    assert variables == {"TIEREDKV_WARM_SIZE": "1Gi", "TIEREDKV_SECURITY_ALLOWED_UIDS": "[7, 8]"}


def test_a_failed_check_stops_it_and_names_the_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    outcome = cli("serve", "--dry-run", "--warm", "1Gi", "--", "python", "-m", "vllm.entrypoints.openai.api_server")
    assert outcome.code == 1
    assert outcome.out == ""
    assert "fail: hashes: sha256, PYTHONHASHSEED random -> unset PYTHONHASHSEED" in outcome.err
    assert "--no-checks" in outcome.err


def test_the_hash_algorithm_of_the_command_is_judged(cli: Cli) -> None:
    for words in (["--prefix-caching-hash-algo", "xxhash"], ["--prefix_caching_hash_algo=xxhash_cbor"]):
        outcome = cli("serve", "--dry-run", "--warm", "1Gi", "--", "python", *words)
        assert outcome.code == 1
        assert "keys differ in every process -> use --prefix-caching-hash-algo sha256_cbor" in outcome.err
