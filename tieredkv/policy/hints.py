"""What an application may say of the future of a request's chain.

Hints come with a request (`kv_transfer_params`) or through the sidecar. They are claims: a policy learns
what they are worth, nobody has to tell the truth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SESSION_CHARS_MAX: Final = 256
RETURN_S_MAX: Final = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class UseHints:
    """Hints of one use.

    `session` names the conversation or agent run that the request belongs to; `closed`: it will not come
    back; `return_within_s`: it comes back within so many seconds (None: not said); `keep`: worth more than
    it looks; `one_shot`: what this request adds will not be used again.
    """

    session: str = ""
    closed: bool = False
    return_within_s: float | None = None
    keep: bool = False
    one_shot: bool = False


NO_HINTS: Final = UseHints()

HINT_NAMES: Final = ("session", "session_closed", "return_within_s", "keep", "one_shot")
"""Names in `kv_transfer_params` and on the wire."""


def spell_hints(hints: UseHints) -> dict[str, str | int | float | bool]:
    """`hints` by name, without what is not said: `parse_hints` reads it back."""
    spelt: dict[str, str | int | float | bool] = {}
    if hints.session:
        spelt["session"] = hints.session
    if hints.closed:
        spelt["session_closed"] = True
    if hints.return_within_s is not None:
        spelt["return_within_s"] = hints.return_within_s
    if hints.keep:
        spelt["keep"] = True
    if hints.one_shot:
        spelt["one_shot"] = True
    return spelt


def parse_hints(raw: Mapping[str, object]) -> UseHints:
    """The hints in `raw` (names: HINT_NAMES). What is unknown or no value of its kind is ignored.

    Never raises: a request must not fail for a bad hint.
    """
    if not raw:
        return NO_HINTS
    session = raw.get("session", "")
    if isinstance(session, int) and not isinstance(session, bool):
        session = str(session)
    within = raw.get("return_within_s")
    timed = isinstance(within, int | float) and not isinstance(within, bool) and 0 < within <= RETURN_S_MAX
    return UseHints(
        session=session if isinstance(session, str) and len(session) <= SESSION_CHARS_MAX else "",
        closed=raw.get("session_closed") is True,
        return_within_s=float(within) if timed and isinstance(within, int | float) else None,
        keep=raw.get("keep") is True,
        one_shot=raw.get("one_shot") is True,
    )
