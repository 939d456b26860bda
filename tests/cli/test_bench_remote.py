"""`tieredkv bench remote`, small: a row for each floor of each size, and a word about what is wrong."""

import json

import pytest

from tests.cli.conftest import Cli


def test_json_has_a_row_for_each_floor_of_each_size(cli: Cli) -> None:
    outcome = cli("bench", "remote", "--sizes", "64KiB,1MiB", "--rounds", 1, "--json", "-")
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)["results"]
    assert [(row["chunk_bytes"], row["floor"]) for row in rows] == [
        (size, floor) for size in (64 << 10, 1 << 20) for floor in ("socket", "memcpy")
    ]
    for row in rows:
        assert row["batch"] == 64
        for name in ("gbytes_per_s", "verified_gbytes_per_s", "floor_gbytes_per_s", "ratio", "verified_ratio"):
            assert row[name] > 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--sizes", "1MiB,huge"), "--sizes huge: not a size"),
        (("--sizes", "0"), "--sizes 0: write sizes"),
        (("--sizes", "1TiB"), "--sizes 1TiB: write sizes"),
        (("--peers", "etcd"), "--peers etcd: not one of"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(cli: Cli, words: tuple[str, ...], reason: str) -> None:
    outcome = cli("bench", "remote", *words)
    assert outcome.code == 2
    assert len(outcome.complaints()) == 1
    assert reason in outcome.complaints()[0]
