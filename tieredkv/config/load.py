"""Loading: flag > environment > file > vLLM's extra config > default, every problem reported at once."""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tieredkv.config.memory import Memory, read_memory
from tieredkv.config.remedy import remedy
from tieredkv.config.source import (
    ENV_FILE,
    Setting,
    Source,
    from_environ,
    from_file,
    from_mapping,
)
from tieredkv.config.tree import AUTO_KEYS, KEYS, SECTIONS, Config
from tieredkv.errors import ConfigError

_VALUE_CHARS_MAX: Final = 60


@dataclass(frozen=True, slots=True)
class Loaded:
    """The configuration, and for every dotted key in words where its value came from."""

    config: Config
    sources: Mapping[str, str]


def load_config(
    path: Path | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
    read_memory: Callable[[], Memory] = read_memory,
) -> Loaded:
    """Build the configuration from all its sources.

    `path` is the file of the command line; without it TIEREDKV_CONFIG names one, else there is none.
    `flags` are dotted keys (None = flag not given), `extra` is vLLM's extra config, nested or dotted.
    `environ` defaults to the process's. Raises ConfigError whose text has one line per problem.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    file = path if path is not None else Path(environ[ENV_FILE]) if environ.get(ENV_FILE) else None
    layers = [
        from_mapping(extra or {}, "extra_config"),
        from_file(file) if file is not None else Source(),
        from_environ(environ),
        from_mapping(given, "flag"),
    ]
    settings: dict[str, Setting] = {}
    for layer in layers:
        settings.update(layer.settings)
    problems = [problem for layer in layers for problem in layer.problems]
    try:
        _replace_auto(settings, environ, read_memory)
        config = Config.model_validate(_nested(settings))
    except ValidationError as error:
        problems += [_problem(details, settings) for details in error.errors(include_url=False)]
    else:
        if not problems:
            return Loaded(config, _sources(settings))
    raise ConfigError("\n".join(problems))


def _replace_auto(settings: dict[str, Setting], environ: Mapping[str, str], read_memory: Callable[[], Memory]) -> None:
    """Put values in place of `auto` (written or by default) for the keys that depend on the machine."""
    asked = {key: settings[key].origin for key in AUTO_KEYS if key in settings and settings[key].value == "auto"}
    for key in AUTO_KEYS:
        if key in settings and key not in asked:
            continue
        origin = asked.get(key, "default")
        if key == "runtime_dir":
            runtime_dir, reason = _auto_runtime_dir(environ)
            settings[key] = Setting(runtime_dir, f"{origin}, auto: {reason}")
        elif key == "socket":
            parent = settings["runtime_dir"].value
            # A broken runtime_dir is reported by itself; its socket is not a second problem.
            folder = str(parent) if isinstance(parent, str | Path) and Path(parent).is_absolute() else "/"
            settings[key] = Setting(str(Path(folder) / "tieredkv.sock"), f"{origin}, auto: in runtime_dir")
        else:
            size_bytes, reason = read_memory().auto_warm_bytes()
            settings[key] = Setting(size_bytes, f"{origin}, auto: {reason}")


def _auto_runtime_dir(environ: Mapping[str, str]) -> tuple[str, str]:
    if os.geteuid() == 0:
        return "/run/tieredkv", "we are root"
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if Path(runtime).is_absolute():
        return f"{runtime}/tieredkv", "in XDG_RUNTIME_DIR"
    return f"{tempfile.gettempdir()}/tieredkv-{os.geteuid()}", "no XDG_RUNTIME_DIR"


def _nested(settings: Mapping[str, Setting]) -> dict[str, Any]:
    tree: dict[str, Any] = {section: {} for section in SECTIONS}
    for key, setting in settings.items():
        section, _, name = key.rpartition(".")
        (tree[section] if section else tree)[name] = setting.value
    return tree


def _sources(settings: Mapping[str, Setting]) -> dict[str, str]:
    return {key: settings[key].origin if key in settings else "default" for key in KEYS}


def _problem(details: ErrorDetails, settings: Mapping[str, Setting]) -> str:
    key = next(dotted for dotted in (".".join(map(str, details["loc"][:end])) for end in (2, 1)) if dotted in settings)
    shown = repr(settings[key].value)
    if len(shown) > _VALUE_CHARS_MAX:
        shown = shown[: _VALUE_CHARS_MAX - 3] + "..."
    return f"{settings[key].origin}: {key}: {shown}: {remedy(details)}"
