"""Where the sessions of applications stand: the last position of the chain that each used last."""

from collections import OrderedDict
from hashlib import blake2b

from tieredkv.types import Key

SESSIONS_MAX = 65_536
"""Sessions remembered (some 200 bytes each), the longest unused forgotten first."""

_DIGEST_BYTES = 16


class Sessions:
    """Session of a tenant -> the key that its last chain ended in.

    Names are kept as digests: an application's ids may tell something of its users, and are as long as it
    likes.
    """

    def __init__(self, sessions_max: int = SESSIONS_MAX) -> None:
        assert sessions_max >= 1
        self._max = sessions_max
        self._last: OrderedDict[bytes, Key] = OrderedDict()

    def used(self, tenant: str, session: str, key: Key) -> None:
        """The session used a chain that ends in `key`."""
        name = _name(tenant, session)
        self._last[name] = key
        self._last.move_to_end(name)
        if len(self._last) > self._max:
            self._last.popitem(last=False)

    def last(self, tenant: str, session: str) -> Key | None:
        """The key that its last chain ended in; None for a session that is not known (any more)."""
        return self._last.get(_name(tenant, session))

    def clear(self) -> None:
        self._last.clear()

    def __len__(self) -> int:
        return len(self._last)

    def check(self) -> None:
        """Assert the bound."""
        assert len(self._last) <= self._max


def _name(tenant: str, session: str) -> bytes:
    """A digest of both; the length keeps ("a", "bc") apart from ("ab", "c")."""
    text = f"{len(tenant)}:{tenant}{session}"
    return blake2b(text.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES).digest()
