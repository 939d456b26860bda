"""One source of configuration values: nested mappings flattened to dotted keys, with what is wrong in them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Final, cast

import yaml

from tieredkv.config.tree import KEYS, SECTIONS
from tieredkv.errors import ConfigError

FILE_BYTES_MAX: Final = 1 << 20
ENV_PREFIX: Final = "TIEREDKV_"
ENV_FILE: Final = "TIEREDKV_CONFIG"
# Kubernetes injects these for a service whose name starts with tieredkv.
_SERVICE_LINK: Final = re.compile(r"TIEREDKV_(.*_)?(SERVICE_(HOST|PORT.*)|PORT(_\d+_.*)?)")


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and where it was written, for people."""

    value: object
    origin: str


@dataclass(slots=True)
class Source:
    """Settings by dotted key, and one line per problem found on the way."""

    settings: dict[str, Setting] = field(default_factory=dict[str, Setting])
    problems: list[str] = field(default_factory=list[str])

    def add(self, key: str, value: object, origin: str) -> None:
        """Take over one value, or note that its key is unknown. None of a section means all its defaults."""
        if key in KEYS:
            self.settings[key] = Setting(value, origin)
        elif key not in SECTIONS:
            known = KEYS if "." in key else (*SECTIONS, *KEYS)
            self.problems.append(f"{origin}: {key}: unknown key{suggestion(key, known)}")
        elif value is not None:
            self.problems.append(
                f"{origin}: {key}: {value!r} is not a section; write its keys below it, such as "
                f"{next(known for known in KEYS if known.startswith(key + '.'))}"
            )


def suggestion(word: str, known: tuple[str, ...]) -> str:
    """'; did you mean X?', or nothing when no known word is near."""
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if not near:
        tail = word.rpartition(".")[2].lower()
        by_tail = {name.rpartition(".")[2].lower(): name for name in known}
        near = [by_tail[match].lower() for match in get_close_matches(tail, by_tail, n=1, cutoff=0.75)]
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def from_mapping(mapping: Mapping[str, object], origin: str) -> Source:
    """Settings of nested or dotted keys (vLLM's extra config, command line flags)."""
    source = Source()
    for name, value in mapping.items():
        if name in SECTIONS and isinstance(value, Mapping):
            for inner, inner_value in cast(Mapping[object, object], value).items():
                source.add(f"{name}.{inner}", inner_value, origin)
        else:
            source.add(name, value, origin)
    return source


def from_environ(environ: Mapping[str, str]) -> Source:
    """Settings of TIEREDKV_WARM_SIZE and the like. An empty variable counts as not set."""
    source = Source()
    by_variable = {env_variable(key): key for key in KEYS}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or variable == ENV_FILE or not text:
            continue
        if variable in by_variable:
            source.add(by_variable[variable], plain_value(text), f"environment {variable}")
        elif not _SERVICE_LINK.fullmatch(variable):
            source.problems.append(
                f"environment {variable}: unknown variable{suggestion(variable, tuple(by_variable))}"
            )
    return source


def env_variable(key: str) -> str:
    """The environment variable of a dotted key."""
    return ENV_PREFIX + key.replace(".", "_").upper()


def plain_value(text: str) -> object:
    """What the file would make of `text` behind a colon."""
    try:
        return cast(object, yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def from_file(path: Path) -> Source:
    """Settings of a YAML file; each origin names the line. Raises ConfigError when it cannot be read at all."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes; this is not a configuration file")
    try:
        root = yaml.compose(content.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; write the configuration as YAML") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; see the example for the two levels there are") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    source = Source()
    if root is None:
        return source
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: must be a mapping of keys such as 'warm:'; see tieredkv config schema")
    for key, node, origin in _pairs(path, root, source):
        if key in SECTIONS and isinstance(node, yaml.MappingNode):
            for inner, inner_node, inner_origin in _pairs(path, node, source):
                _add_node(source, f"{key}.{inner}", inner_node, inner_origin)
        else:
            _add_node(source, key, node, origin)
    return source


def _pairs(path: Path, mapping: yaml.MappingNode, source: Source) -> list[tuple[str, yaml.Node, str]]:
    pairs: dict[str, tuple[str, yaml.Node, str]] = {}
    for key_node, node in mapping.value:
        origin = f"{path}:{key_node.start_mark.line + 1}"
        key = str(key_node.value)
        if key in pairs:
            # YAML readers let the last one win, silently.
            source.problems.append(f"{origin}: {key}: written twice, first at {pairs[key][2]}")
        pairs.setdefault(key, (key, node, origin))
    return list(pairs.values())


def _add_node(source: Source, key: str, node: yaml.Node, origin: str) -> None:
    loader = yaml.SafeLoader("")
    try:
        value = loader.construct_document(node)  # pyright: ignore[reportUnknownMemberType] (no annotations)
        source.add(key, value, origin)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        source.problems.append(f"{origin}: {key}: not a plain value: {' '.join(str(error).split())}")
    finally:
        loader.dispose()
