"""Hints in a request's `kv_transfer_params`: taken when good, ignored and counted otherwise."""

import math
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredkv.policy.hints import HINT_NAMES, SESSION_CHARS_MAX, parse_hints
from tieredkv.protocol import Arrive, decode_from_engine, encode
from tieredkv.vllm_client.request_hints import RequestHints, request_hints


@pytest.mark.parametrize("params", [None, {}, {"do_remote_prefill": True}, [], "tieredkv", {"tieredkv": None}])
def test_other_connectors_parameters_are_none_of_ours(params: object) -> None:
    assert request_hints(params) == RequestHints()


def test_all_good_ones_are_taken() -> None:
    said: dict[str, str | int | float] = {
        "session": "c42",
        "session_closed": False,
        "return_within_s": 60,
        "keep": True,
        "one_shot": True,
        "tenant": "acme",
    }
    taken = request_hints({"tieredkv": said, "max_load_tokens": 7})
    assert taken == RequestHints("acme", {name: said[name] for name in HINT_NAMES}, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("session", ""),
        ("session", "x" * (SESSION_CHARS_MAX + 1)),
        ("session", True),
        ("session", "\ud800"),
        pytest.param("session", 10 ** (sys.get_int_max_str_digits() + 1), id="endless number"),
        ("session_closed", 1),
        ("session_closed", "true"),
        ("return_within_s", -1),
        ("return_within_s", math.nan),
        ("return_within_s", math.inf),
        ("return_within_s", True),
        ("keep", None),
        ("one_shot", []),
        ("tenant", 1.5),
        ("unknown", True),
    ],
)
def test_a_bad_one_is_ignored_and_counted(name: str, value: object) -> None:
    assert request_hints({"tieredkv": {"session_closed": False, "keep": False, name: value}}).ignored == 1


@pytest.mark.parametrize("said", [7, "session", ["session"], True])
def test_what_is_no_object_counts_as_one(said: object) -> None:
    assert request_hints({"tieredkv": said}) == RequestHints(ignored=1)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from([*HINT_NAMES, "tenant"]) | st.text(), anything, max_size=6))
def test_whatever_is_said_can_be_sent(said: dict[str, object]) -> None:
    taken = request_hints({"tieredkv": said})
    sent = decode_from_engine(encode(Arrive("r", 1, [], 1, taken.tenant, taken.hints))[4:])
    assert isinstance(sent, Arrive)
    assert parse_hints(sent.hints) == parse_hints(taken.hints)
    assert msgspec.json.encode(taken.hints)
    assert 0 <= taken.ignored <= len(said)
