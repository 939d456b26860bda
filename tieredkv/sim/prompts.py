"""Prompts as chains of blocks: texts are appended, and equal beginnings get equal ids."""

from dataclasses import dataclass, field
from typing import NamedTuple, NewType

TextId = NewType("TextId", int)
"""Name of one text of a generated workload; two texts have no token in common."""


class Piece(NamedTuple):
    """The tokens from `start` to `end` of one text."""

    text: TextId
    start: int
    end: int


@dataclass(slots=True)
class ChainIds:
    """Numbers the blocks of a workload in the order of first sight, and its texts."""

    block_tokens: int
    _ids: dict[tuple[int, tuple[Piece, ...]], int] = field(default_factory=dict[tuple[int, tuple[Piece, ...]], int])
    _texts: int = 0

    def text(self) -> TextId:
        """A new text."""
        self._texts += 1
        return TextId(self._texts)

    def block(self, parent: int, pieces: tuple[Piece, ...]) -> int:
        """The id of the block with these pieces behind the block `parent` (-1: at the start)."""
        return self._ids.setdefault((parent, pieces), len(self._ids))


@dataclass(slots=True)
class Prompt:
    """A prompt that grows. `ids` are its full blocks."""

    chain: ChainIds
    ids: list[int] = field(default_factory=list[int])
    tokens: int = 0
    _open: list[Piece] = field(default_factory=list[Piece])

    def append(self, text: TextId, tokens: int, *, start: int = 0) -> None:
        """Add `tokens` tokens of `text`, from its token `start` on."""
        block_tokens = self.chain.block_tokens
        end = start + tokens
        while start < end:
            taken = min(block_tokens - self.tokens % block_tokens, end - start)
            if self._open and self._open[-1].text == text and self._open[-1].end == start:
                self._open[-1] = Piece(text, self._open[-1].start, start + taken)
            else:
                self._open.append(Piece(text, start, start + taken))
            self.tokens += taken
            start += taken
            if self.tokens % block_tokens == 0:
                self.ids.append(self.chain.block(self.ids[-1] if self.ids else -1, tuple(self._open)))
                self._open.clear()

    def snapshot(self) -> list[int]:
        """All ids as a request has them: the full blocks, and the partial one if there is any."""
        if not self._open:
            return self.ids.copy()
        return [*self.ids, self.chain.block(self.ids[-1] if self.ids else -1, tuple(self._open))]

    def copy(self) -> "Prompt":
        """The same prompt, to grow apart."""
        return Prompt(self.chain, self.ids.copy(), self.tokens, self._open.copy())
