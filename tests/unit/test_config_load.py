import os
from pathlib import Path

import pytest

from tieredkv.config import Config, HttpAddress, Loaded, Memory, load_config
from tieredkv.config.render import defaults
from tieredkv.config.source import env_variable
from tieredkv.config.tree import KEYS
from tieredkv.errors import ConfigError

GIB = 1 << 30
MEMORY = Memory(available_bytes=20 * GIB, limit_bytes=None, left_bytes=None)


def load(path: Path | None = None, **sources: object) -> Loaded:
    arguments: dict[str, object] = {"environ": {}} | sources
    return load_config(path, read_memory=lambda: MEMORY, **arguments)  # type: ignore[arg-type]


def problems(path: Path | None = None, **sources: object) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(path, **sources)
    return str(raised.value).splitlines()


def write(folder: Path, text: str) -> Path:
    path = folder / "tieredkv.yaml"
    path.write_text(text)
    return path


def test_without_any_source_everything_has_a_default_that_says_why() -> None:
    loaded = load(environ={"XDG_RUNTIME_DIR": "/run/user/7"})
    assert loaded.config.warm.size_bytes == 10 * GIB
    assert loaded.sources["warm.size"] == "default, auto: half of 20.0 GiB available"
    assert loaded.config.socket == loaded.config.runtime_dir / "tieredkv.sock"
    assert loaded.config.engine.lookup_deadline_s == 0.05
    assert loaded.config.metrics.http is None
    assert tuple(loaded.sources) == KEYS


def test_runtime_dir_is_private_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load().config.runtime_dir == Path("/run/tieredkv")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert load(environ={"XDG_RUNTIME_DIR": "/run/user/7"}).config.runtime_dir == Path("/run/user/7/tieredkv")
    assert load().config.runtime_dir.name == "tieredkv-7"


def test_flag_beats_environment_beats_file_beats_extra_config_beats_default(tmp_path: Path) -> None:
    sources: dict[str, object] = {
        "extra": {"warm": {"size": "1GiB"}},
        "path": write(tmp_path, "warm:\n  size: 2GiB\n"),
        "environ": {"TIEREDKV_WARM_SIZE": "3GiB"},
        "flags": {"warm.size": "4GiB"},
    }
    expected = [
        ("flags", 4, "flag"),
        ("environ", 3, "environment TIEREDKV_WARM_SIZE"),
        ("path", 2, f"{tmp_path}/tieredkv.yaml:2"),
        ("extra", 1, "extra_config"),
        ("", 10, "default, auto: half of 20.0 GiB available"),
    ]
    for strongest, size_gib, origin in expected:
        loaded = load(**sources)
        assert (loaded.config.warm.size_bytes, loaded.sources["warm.size"]) == (size_gib * GIB, origin)
        sources.pop(strongest, None)


def test_auto_written_in_a_stronger_source_wins_over_a_weaker_value() -> None:
    loaded = load(flags={"warm.size": "auto"}, environ={"TIEREDKV_WARM_SIZE": "3GiB"})
    assert loaded.config.warm.size_bytes == 10 * GIB
    assert loaded.sources["warm.size"].startswith("flag, auto:")


def test_flags_that_were_not_given_change_nothing() -> None:
    assert load(flags={"warm.size": None}) == load()


def test_the_environment_names_the_file_and_a_flag_names_another(tmp_path: Path) -> None:
    path = write(tmp_path, "log_level: debug")
    assert load(environ={"TIEREDKV_CONFIG": str(path)}).config.log_level == "debug"
    other = tmp_path / "other.yaml"
    other.write_text("log_level: error")
    assert load(other, environ={"TIEREDKV_CONFIG": str(path)}).config.log_level == "error"


def test_every_key_can_be_set_by_its_variable() -> None:
    texts = {"metrics.http": "127.0.0.1:9400", "trace.path": "/t", "warm.prefault": "false", "runtime_dir": "/r"}
    texts |= {"security.allowed_uids": "[1000, 1001]", "engine.chunk_tokens": "64", "engine.lookup_deadline": "1s"}
    loaded = load(environ={env_variable(key): text for key, text in texts.items()})
    config = loaded.config
    assert config.metrics.http == HttpAddress("127.0.0.1", 9400)
    assert config.security.allowed_uids == (1000, 1001)
    assert (config.engine.chunk_tokens, config.engine.lookup_deadline_s) == (64, 1.0)
    assert not config.warm.prefault
    assert config.socket == Path("/r/tieredkv.sock")
    assert {key for key, origin in loaded.sources.items() if origin.startswith("environment")} == set(texts)


def test_empty_variables_and_service_links_are_not_settings() -> None:
    environ = {
        "TIEREDKV_WARM_SIZE": "",
        "TIEREDKV_PORT": "tcp://10.0.0.1:80",
        "TIEREDKV_SERVICE_HOST": "10.0.0.1",
        "TIEREDKV_SIDECAR_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert load(environ=environ) == load()


def test_extra_config_may_be_nested_or_dotted() -> None:
    assert load(extra={"engine.sidecar": "private"}).config == load(extra={"engine": {"sidecar": "private"}}).config


def test_empty_files_and_sections_are_all_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")).config == load().config
    assert load(write(tmp_path, "warm:\npolicy: {}\n")).config == load().config


def test_the_tree_cannot_be_changed() -> None:
    config = load().config
    with pytest.raises(ValueError, match="frozen"):
        config.warm.size_bytes = 3  # type: ignore[misc]


def test_all_problems_are_reported_at_once_with_line_key_value_and_remedy(tmp_path: Path) -> None:
    path = write(tmp_path, "warm:\n  sise: 3GiB\n  size: lots\nengine:\n  sidecar: externl\n")
    found = problems(path, environ={"TIEREDKV_WARM_PREFAULT": "perhaps"}, flags={"limits.connections_max": 0})
    assert found == [
        f"{path}:2: warm.sise: unknown key; did you mean warm.size?",
        f"{path}:3: warm.size: 'lots': not a size; write a size such as 64GiB, 64Gi, 512MB, or a whole number of bytes",
        "environment TIEREDKV_WARM_PREFAULT: warm.prefault: 'perhaps': must be true or false",
        "flag: limits.connections_max: 0: must be at least 1",
        f"{path}:5: engine.sidecar: 'externl': must be one of auto, external or private; did you mean external?",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("warn: {}", "unknown key; did you mean warm?"),
        ("size: 3GiB", "unknown key; did you mean warm.size?"),
        ("lookup_deadline: 3s", "unknown key; did you mean engine.lookup_deadline?"),
        ("zzz: 1", "zzz: unknown key"),
        ("warm:\n  size: 3GiB\n  size: 4GiB", "size: written twice, first at"),
        ("warm: 64GiB", "'64GiB' is not a section; write its keys below it, such as warm.size"),
        ("warm: [1]", "[1] is not a section"),
        ("warm: {size: 64Gb x}", "not a size"),
        ("warm: {size: 1KiB}", "at least 1MiB"),
        ("warm: {size: {a: 1}}", "not a size"),
        ("warm: {namespaces_max: 1.5}", "must be a whole number"),
        ("warm: {namespaces_max: true}", "must be a whole number"),
        ("warm: {namespaces_max: 65}", "must be at most 64"),
        ("warm: {prefault: 1}", "must be true or false"),
        ("policy: {name: lfu}", "must be gix, "),
        ("limits: {engine_share_max: 0}", "must be more than 0"),
        ("limits: {engine_share_max: half}", "must be a number"),
        ("engine: {lookup_deadline: 50}", "write a duration with its unit"),
        ("engine: {attach_deadline: 0s}", "more than 0 and at most 10min"),
        ("engine: {chunk_tokens: some}", "must be auto or a whole number"),
        ("metrics: {http: 9400}", "write HOST:PORT"),
        ("metrics: {http: '::1:9400'}", "write HOST:PORT"),
        ("metrics: {http: 'localhost:99999'}", "write HOST:PORT"),
        ("security: {allowed_uids: 1000}", "write uids as [1000, 1001]"),
        ("security: {allowed_uids: [alice]}", "write uids as [1000, 1001]"),
        ("runtime_dir: run", "write an absolute path"),
        ("runtime_dir: 3", "write an absolute path"),
        ("trace: {path: 3}", "write an absolute path"),
        (f"socket: /{'x' * 120}", "longer than the 107 bytes"),
        (f"runtime_dir: /{'x' * 120}", "choose a shorter runtime_dir"),
        ("log_level: loud", "must be one of debug, info, warning or error"),
        ("warm: {size: 2024-13-45}", "not a plain value"),
        ("warm: {size: !!python/object:os.system 3}", "not a plain value"),
    ],
)
def test_one_clear_line_for_each_broken_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    (line,) = problems(path)
    assert message in line
    assert line.startswith((f"{path}:", "default, auto"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"warm: [", "not YAML"),
        (b"\tx: 1", "not YAML"),
        (b"a: 1\n---\nb: 2", "not YAML"),
        (b"- 1", "must be a mapping"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\0", "not YAML"),
        (b"[" * 100_000, "nested too deeply"),
        (b"#" * (1 << 20) + b"\n", "larger than"),
    ],
)
def test_a_file_that_cannot_be_read_as_configuration_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "tieredkv.yaml"
    path.write_bytes(content)
    (line,) = problems(path)
    assert line.startswith(f"{path}")
    assert message in line


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "No such file" in problems(tmp_path / "none.yaml")[0]
    assert "Is a directory" in problems(tmp_path)[0]


def test_unknown_variables_are_refused() -> None:
    (line,) = problems(environ={"TIEREDKV_WARM_SIZ": "3GiB"})
    assert line == "environment TIEREDKV_WARM_SIZ: unknown variable; did you mean TIEREDKV_WARM_SIZE?"


def test_long_values_are_cut() -> None:
    (line,) = problems(flags={"warm.size": "x" * 500})
    assert len(line) < 250


def test_defaults_load_as_themselves() -> None:
    assert load(extra=defaults()).config == load().config
    assert isinstance(load().config, Config)
