"""What the demo asks: several conversations with one system prompt, their turns interleaved.

The same seed gives the same workload. Every round keeps the order, so between two turns of one conversation
all the others have theirs: a hot tier that holds little more than one conversation has lost the private part
of its prompt by then.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_WORDS: Final = (
    "amber", "anchor", "april", "atlas", "basin", "beacon", "birch", "bridge", "canal", "candle", "cedar", "circle",
    "clover", "comet", "copper", "coral", "delta", "desert", "drift", "ember", "engine", "fabric", "falcon", "fern",
    "forest", "garden", "glacier", "granite", "harbor", "hazel", "hollow", "island", "ivory", "jasmine", "kernel",
    "lagoon", "lantern", "ledger", "maple", "marble", "meadow", "mirror", "nectar", "needle", "north", "oak", "ocean",
    "orbit", "paper", "pebble", "planet", "prairie", "quartz", "quiet", "raven", "reef", "river", "saddle", "salt",
    "shadow", "silver", "spiral", "summit", "thistle", "thunder", "timber", "valley", "velvet", "walnut", "willow",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """One question of one conversation."""

    conversation: int
    text: str


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of a workload. Lengths are in characters, which are the demo tokenizer's tokens."""

    conversations: int = 4
    rounds_before: int = 2  # rounds before vLLM is killed; in a round every conversation has one turn
    rounds_after: int = 2
    system_chars: int = 512
    first_chars: int = 800  # the first question carries a document
    later_chars: int = 240
    answer_tokens: int = 24

    @property
    def rounds(self) -> int:
        return self.rounds_before + self.rounds_after

    def longest_prompt_chars(self) -> int:
        """Upper bound of a conversation's text at its last turn, answer included, chat markers not."""
        questions = self.first_chars + (self.rounds - 1) * self.later_chars
        return self.system_chars + questions + self.rounds * self.answer_tokens


@dataclass(frozen=True, slots=True)
class Workload:
    """The system prompt and, round by round, the turns in the order in which they are asked."""

    system: str
    rounds: tuple[tuple[Turn, ...], ...]
    shape: Shape

    def before_restart(self) -> list[Turn]:
        return self._turns(0, self.shape.rounds_before)

    def just_after_restart(self) -> list[Turn]:
        """One turn of each conversation: whatever warm serves of these was stored before the kill."""
        return self._turns(self.shape.rounds_before, self.shape.rounds_before + 1)

    def rest(self) -> list[Turn]:
        return self._turns(self.shape.rounds_before + 1, self.shape.rounds)

    def _turns(self, first: int, end: int) -> list[Turn]:
        return [turn for turns in self.rounds[first:end] for turn in turns]


def make_workload(shape: Shape, *, seed: int) -> Workload:
    """The workload of that shape and seed."""
    stream = random.Random(seed)  # noqa: S311 - a workload must be repeatable, not secret
    system = _text(stream, shape.system_chars)
    rounds: list[tuple[Turn, ...]] = []
    for number in range(shape.rounds):
        chars = shape.later_chars if number else shape.first_chars
        rounds.append(tuple(Turn(conversation, _text(stream, chars)) for conversation in range(shape.conversations)))
    return Workload(system, tuple(rounds), shape)


def _text(stream: random.Random, chars: int) -> str:
    """Sentences of random words, cut to exactly `chars`."""
    return " ".join(_sentences(stream, chars))[:chars]


def _sentences(stream: random.Random, chars: int) -> Iterator[str]:
    made = 0
    while made < chars:
        sentence = " ".join(stream.choices(_WORDS, k=stream.randint(5, 12))).capitalize() + "."
        made += len(sentence)
        yield sentence
