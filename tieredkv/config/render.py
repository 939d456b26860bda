"""The configuration as text: the tree as a file holds it, a commented example, and the JSON schema."""

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from tieredkv.config.tree import AUTO_KEYS, KEYS, SECTIONS, Config


def dump(config: Config) -> dict[str, Any]:
    """The tree as the file would hold it: sizes and durations with units."""
    return config.model_dump(mode="json", by_alias=True)


def defaults() -> dict[str, object]:
    """Default of every dotted key, as the file would hold it."""
    placeholders: dict[str, object] = {"runtime_dir": "/", "socket": "/s", "warm": {"size": "1GiB"}}
    tree = dump(Config.model_validate(placeholders))
    return {key: _at(tree, key) for key in KEYS} | dict.fromkeys(AUTO_KEYS, "auto")


def as_yaml(tree: Mapping[str, Any], remarks: Mapping[str, str]) -> str:
    """`tree` as YAML, with the remark of each dotted key behind its value."""
    lines = [
        (key, f"{'  ' if '.' in key else ''}{key.rpartition('.')[2]}: {inline_yaml(_at(tree, key))}") for key in KEYS
    ]
    width = max(len(text) for _, text in lines)
    text: list[str] = []
    section = ""
    for key, line in lines:
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            text.append(f"{section}:")
        text.append(f"{line:<{width}}  # {remarks[key]}")
    return "\n".join(text) + "\n"


def example_yaml() -> str:
    """A file with every key at its default, each explained: docs/tieredkv.example.yaml."""
    lines = [
        "# tieredkv: every key, at its default. A file needs only the keys that differ.",
        "# Sizes: 64GiB, 64Gi, 512MB, bytes. Durations: 50ms, 2s, 1.5min. Paths are absolute.",
        "# Precedence: flag > environment (TIEREDKV_WARM_SIZE) > this file > vLLM's extra config > default.",
    ]
    section = ""
    for key, default in defaults().items():
        owner, _, name = key.rpartition(".")
        if owner != section:
            section = owner
            lines += ["", f"# {_model(section).__doc__}", f"{section}:"]
        elif not owner:
            lines.append("")
        indent = "  " if owner else ""
        field = next(
            field
            for python_name, field in (_model(owner) if owner else Config).model_fields.items()
            if name in (field.alias, python_name)
        )
        assert field.description is not None
        lines += [f"{indent}# {part}" for part in textwrap.wrap(field.description, 100)]
        lines.append(f"{indent}{name}: {inline_yaml(default)}")
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON schema of the file, for editors. Every key is optional there."""
    schema = Config.model_json_schema(by_alias=True)
    schema.pop("required", None)
    for definition in schema["$defs"].values():
        definition.pop("required", None)
    for section in SECTIONS:
        # A section that is named but left empty is null in YAML.
        reference = schema["properties"][section].pop("$ref")
        schema["properties"][section] = {"anyOf": [{"$ref": reference}, {"type": "null"}]}
    for key, default in defaults().items():
        section, _, name = key.rpartition(".")
        owner = schema["$defs"][_model(section).__name__] if section else schema
        owner["properties"][name]["default"] = default
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "tieredkv.yaml"}


def inline_yaml(value: object) -> str:
    """A plain value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1 << 16)
    return text.removesuffix("\n").removesuffix("\n...")


def _at(tree: Mapping[str, Any], key: str) -> object:
    section, _, name = key.rpartition(".")
    return tree[section][name] if section else tree[name]


def _model(section: str) -> type[BaseModel]:
    model = Config.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    return model
