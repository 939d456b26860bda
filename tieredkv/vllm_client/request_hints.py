"""The hints that come with a request, taken from its `kv_transfer_params`.

    {"tieredkv": {"session": "c42", "return_within_s": 60, "tenant": "acme"}}

An object of our own inside: other connectors and vLLM itself read the same dictionary.
"""

from dataclasses import dataclass, field
from typing import Final, cast

from tieredkv.policy.hints import HINT_NAMES, NO_HINTS, SESSION_CHARS_MAX, parse_hints

PARAMS_KEY: Final = "tieredkv"
SESSION: Final = "session"
TENANT: Final = "tenant"

HintValue = str | int | float | bool


def _none() -> dict[str, HintValue]:
    return {}


@dataclass(frozen=True, slots=True)
class RequestHints:
    """What a request says of the future: good `hints` by name, and how many values were ignored."""

    tenant: str = ""
    hints: dict[str, HintValue] = field(default_factory=_none)
    ignored: int = 0


_NOTHING: Final = RequestHints()


def request_hints(params: object) -> RequestHints:
    """Read a request's `kv_transfer_params`. Never raises: a request must not fail for a bad hint."""
    said = cast("dict[object, object]", params).get(PARAMS_KEY) if isinstance(params, dict) else None
    if said is None:
        return _NOTHING
    if not isinstance(said, dict):
        return RequestHints(ignored=1)
    said = cast("dict[object, object]", said)
    hints = {name: value for name in HINT_NAMES if (value := _hint(name, said.get(name))) is not None}
    tenant = _text(said.get(TENANT))
    return RequestHints(tenant or "", hints, len(said) - len(hints) - (tenant is not None))


def _hint(name: str, value: object) -> HintValue | None:
    """`value` as it may be sent on; None when it is no value of this hint."""
    if name == SESSION:
        return _text(value)
    if not isinstance(value, int | float):
        return None
    return value if value is False or parse_hints({name: value}) != NO_HINTS else None


def _text(value: object) -> str | None:
    """A name that fits into a message, or None."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    try:
        text = str(value)
        text.encode()
    except ValueError:
        return None  # half a surrogate pair, or an endless number
    return text if 1 <= len(text) <= SESSION_CHARS_MAX else None
