"""Names that tell nothing: numbers for keys, keyed hashes for what people and programs call things."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from tieredkv.types import KEY_BYTES_MAX, KEY_BYTES_MIN, Key

IDS_MAX: Final = 2_000_000
"""Keys remembered (some 200 bytes each); one that was forgotten gets a new number."""

NO_KEY: Final = -1
_NAME_BYTES: Final = 8


class Pseudonyms:
    """Equal things get equal pseudonyms within one recording; those of two recordings have nothing in common.

    A key gets the number of its first sight: nothing of it is in there. A name gets a hash under a
    secret that is random and dies with this object: nobody can find a name by hashing guesses.
    """

    def __init__(self, ids_max: int = IDS_MAX) -> None:
        assert ids_max >= 1
        self._ids_max = ids_max
        self._ids: OrderedDict[Key, int] = OrderedDict()
        self._ids_ever = 0
        self._secret = os.urandom(32)

    def chain(self, keys: Sequence[Key]) -> list[int]:
        """Numbers of neighbouring positions, head first, from 0 on; below NO_KEY for what cannot be a key."""
        ids = self._ids
        numbers: list[int] = []
        for key in keys:
            number = ids.get(key)
            if number is None:
                number = self._ids_ever
                self._ids_ever += 1
                if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
                    number = NO_KEY - 1 - number
                ids[key] = number
            numbers.append(number)
        # The tail is forgotten before the head: else a child would have a new parent.
        for key in reversed(keys):
            ids.move_to_end(key)
        while len(ids) > self._ids_max:
            ids.popitem(last=False)
        return numbers

    def key(self, key: Key) -> int:
        """The number of one key; NO_KEY for the empty one."""
        return self.chain((key,))[0] if key else NO_KEY

    def name(self, kind: bytes, name: str) -> str:
        """The pseudonym of a name among those of its kind (at most 16 bytes); empty for the empty one."""
        if not name:
            return ""
        encoded = name.encode(errors="surrogatepass")
        return blake2b(encoded, key=self._secret, digest_size=_NAME_BYTES, person=kind).hexdigest()
