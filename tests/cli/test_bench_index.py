"""`tieredkv bench index`, small: its figures are there and could be true."""

import json

from tests.cli.conftest import Cli


def test_json_has_the_fixed_names(cli: Cli) -> None:
    outcome = cli("bench", "index", "--entries", 5000, "--keys", 100, "--json", "-")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["entries"] == 5000
    assert document["keys"] == 100
    assert 0 < document["p50_ms"] <= document["p99_ms"]
    assert document["bytes_per_entry"] > 16
    assert document["follow_us_per_change"] > 0
    assert document["dict_p50_ms"] > 0


def test_sizes_are_checked(cli: Cli) -> None:
    outcome = cli("bench", "index", "--entries", 0)
    assert outcome.code == 2
    assert outcome.complaints()
