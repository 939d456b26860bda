"""What came into places and left them since somebody asked: for who follows this node from afar."""

from collections.abc import Iterable, Sequence

from tieredkv.types import Key


class Changes:
    """The last word on each place, slots or pages: a chunk (group, key), or None. Costs nothing unless `watched`."""

    def __init__(self) -> None:
        self.watched = False
        self._last: dict[int, tuple[int, Key] | None] = {}

    def entered(self, group: int, keys: Sequence[Key], places: Iterable[int]) -> None:
        """Chunks of these positions are in these places now."""
        if self.watched:
            self._last.update(zip(places, ((group, key) for key in keys), strict=True))

    def left(self, places: Iterable[int]) -> None:
        """These places hold nothing any more."""
        if self.watched:
            self._last.update(dict.fromkeys(places))

    def take(self) -> dict[int, tuple[int, Key] | None]:
        """All since the last call."""
        last, self._last = self._last, {}
        return last
