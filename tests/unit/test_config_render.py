import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tieredkv.config import Memory, load_config
from tieredkv.config.render import as_yaml, defaults, dump, example_yaml, json_schema
from tieredkv.config.tree import KEYS

EXAMPLE = Path(__file__).parents[2] / "docs" / "tieredkv.example.yaml"
MEMORY = Memory(8 << 30, None, None)


def test_the_example_file_is_every_default_explained() -> None:
    assert EXAMPLE.read_text() == example_yaml(), "run: tieredkv config example > docs/tieredkv.example.yaml"
    tree: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
    flat = {key: tree[key.partition(".")[0]][key.partition(".")[2]] if "." in key else tree[key] for key in KEYS}
    assert flat == defaults()


def test_loading_the_example_changes_nothing() -> None:
    from_example = load_config(EXAMPLE, environ={}, read_memory=lambda: MEMORY)
    assert from_example.config == load_config(environ={}, read_memory=lambda: MEMORY).config


def test_the_schema_accepts_the_example_and_an_empty_file() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(EXAMPLE.read_text()), schema)
    jsonschema.validate({}, schema)
    jsonschema.validate({"warm": None}, schema)
    json.dumps(schema)


@pytest.mark.parametrize(
    "document",
    [
        {"warm": {"sise": "3GiB"}},
        {"warm": {"size": True}},
        {"engine": {"sidecar": "externl"}},
        {"engine": {"lookup_deadline": 50}},
        {"engine": {"chunk_tokens": 0}},
        {"polcy": {}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(document: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())


def test_what_show_prints_is_a_file_with_the_same_meaning(tmp_path: Path) -> None:
    flags = {"warm.size": "3GiB", "metrics.http": "[::1]:9400", "security.allowed_uids": [7], "trace.path": "/t"}
    loaded = load_config(environ={}, flags=flags, read_memory=lambda: MEMORY)
    path = tmp_path / "shown.yaml"
    path.write_text(as_yaml(dump(loaded.config), loaded.sources))
    assert load_config(path, environ={}).config == loaded.config
    assert "size: 3GiB" in path.read_text()
    assert "# flag" in path.read_text()
