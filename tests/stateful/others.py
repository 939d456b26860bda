"""Another node, as this one sees it: places with content tags that may change behind its back."""

from collections.abc import Sequence

from tests.stateful.node import Tag
from tieredkv.brain.elsewhere import Copy
from tieredkv.brain.moves import PeerId
from tieredkv.types import Key

PEER = PeerId(3)


class OtherNode:
    """Implements `Elsewhere`. The index (`told`) follows what is there only when the test says so."""

    def __init__(self) -> None:
        self.is_home = False
        self.reachable = True
        self.places: dict[int, tuple[int, int, Key, Tag]] = {}
        self.told: dict[tuple[int, Key], Copy] = {}
        self.pages: set[int] = set()
        self.distrusted = 0
        self._generations = 0

    def hold(self, group: int, key: Key, tag: Tag, *, page: bool) -> None:
        """It has a chunk now, and its index says so."""
        self._generations += 1
        place = self._generations % 5
        self.places[place] = (self._generations, group, key, tag)
        self.pages.discard(place)
        if page:
            self.pages.add(place)
        self.told = {name: copy for name, copy in self.told.items() if copy.place != place}
        self.told[group, key] = Copy(PEER, place, self._generations)

    def lose(self, place: int) -> None:
        """A chunk is gone there, and the index does not know."""
        self.places.pop(place, None)

    def read(self, group: int, key: Key, copy: Copy) -> Tag | None:
        """What a fetch gets that proves itself."""
        there = self.places.get(copy.place)
        return there[3] if there is not None and there[:3] == (copy.generation, group, key) else None

    # --- Elsewhere ----------------------------------------------------------------------------------

    def find(self, group: int, keys: Sequence[Key]) -> list[Copy | None]:
        return [self.told.get((group, key)) if self.reachable else None for key in keys]

    def keeps(self, group: int, keys: Sequence[Key]) -> list[bool]:
        copies = self.find(group, keys)
        return [copy is not None and copy.place in self.pages for copy in copies]

    def distrust(self, copies: Sequence[Copy]) -> None:
        self.distrusted += len(copies)
        gone = set(copies)
        self.told = {name: copy for name, copy in self.told.items() if copy not in gone}

    def home(self, key: Key) -> PeerId | None:
        del key
        return PEER if self.is_home else None
