"""What a movement costs and what it saves: whether a chunk is worth a page, and a load worth its wait.

The saving of a tier is the time in which a request has a chunk from there instead of computing it again;
a movement costs the mover's time. Both are measured as they happen (exponentially weighted means), so
nobody has to know the hardware.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

Source = int | None
"""Number of the node that a chunk comes from; None: this node's cold tier."""

SMOOTHING: Final = 0.1
"""Weight of the newest measurement."""

USE_PRIOR: Final = 4096.0
"""Demotions that are believed to be of use before any was seen: a new tier is given a chance."""

USE_MEMORY: Final = 20_000.0
"""Demotions after which an observation counts half."""

PROBE_EVERY: Final = 16
"""Of the batches that are not worth it, so many lead to one that moves: else nothing would be learnt any more."""

PROBE_WEIGHT: Final = 0.5
"""Weight of a measurement when loads seem not worth it: a pause of the machine must not shut a tier for long."""


@dataclass(slots=True)
class Rate:
    """Seconds per unit, as measured; `value_s` is a guess until then."""

    value_s: float
    measured: bool = False

    def add(self, units: float, seconds: float, weight: float = SMOOTHING) -> None:
        """`units` took `seconds` in all."""
        if units <= 0 or seconds < 0:
            return
        each_s = seconds / units
        self.value_s = self.value_s + weight * (each_s - self.value_s) if self.measured else each_s
        self.measured = True


@dataclass(slots=True)
class Probes:
    """Which of the batches that are not worth it move all the same."""

    refused: int = 0

    def due(self) -> bool:
        """Whether this one does; asked once of each."""
        self.refused += 1
        return self.refused % PROBE_EVERY == 0


@dataclass(slots=True)
class Placement:
    """Costs of one node. Rates are seconds per chunk.

    `recompute_s` is what the engines need to compute a chunk. `background_weight` is what a second of the
    mover counts against a second that a request waits.
    """

    recompute: Rate
    promote: Rate = field(default_factory=lambda: Rate(0.0))
    demote: Rate = field(default_factory=lambda: Rate(0.0))
    fetch: dict[int, Rate] = field(default_factory=dict[int, Rate])
    background_weight: float = 0.1
    _demoted: float = USE_PRIOR
    _used: float = USE_PRIOR
    _demotion_probes: Probes = field(default_factory=Probes)
    _load_probes: Probes = field(default_factory=Probes)

    @property
    def saving_s(self) -> float:
        """What a request saves with one chunk that is in cold."""
        return self.recompute.value_s - self.promote.value_s

    @property
    def use_probability(self) -> float:
        """Of the chunks that were demoted, how many came back."""
        return min(1.0, self._used / self._demoted)

    def worth_demoting(self) -> bool:
        """Whether victims of warm should be written to cold rather than dropped."""
        worth = self.use_probability * self.saving_s > self.background_weight * self.demote.value_s
        return worth or self._demotion_probes.due()

    def worth_loading(self, chunks: Mapping[Source, int], backlog_chunks: int) -> bool:
        """Whether these (chunks by source), behind what is on its way, are loaded sooner than computed again.

        Also now and then when nothing is on its way and they are not: see PROBE_EVERY.
        """
        count = sum(chunks.values())
        slowest_s = max(self.rate(source).value_s for source in chunks)
        loading_s = sum(number * self.rate(source).value_s for source, number in chunks.items())
        worth = loading_s + backlog_chunks * slowest_s < count * self.recompute.value_s
        return worth or (not backlog_chunks and self._load_probes.due())

    def rate(self, source: Source) -> Rate:
        """Seconds per chunk from there. Of a node that nothing came from yet: those of the slowest known."""
        if source is None:
            return self.promote
        known = self.fetch.get(source)
        if known is None:
            known = self.fetch[source] = Rate(max((rate.value_s for rate in self.fetch.values()), default=0.0))
        return known

    def forget(self, source: Source) -> None:
        """This node is gone."""
        if source is not None:
            self.fetch.pop(source, None)

    def worth_waiting(self, chunks: int, backlog_chunks: int) -> bool:
        """Whether a load that needs so many slots waits for as many demotions, behind others.

        Else the chunks in its way are lost: they cost what they would have saved.
        """
        return (chunks + backlog_chunks) * self.demote.value_s < chunks * self.use_probability * self.saving_s

    def demoted(self, chunks: int, seconds: float) -> None:
        """The mover demoted so many chunks in that time."""
        self.demote.add(chunks, seconds)
        self._demoted += chunks
        if self._demoted > 2 * USE_MEMORY:
            self._demoted /= 2
            self._used /= 2

    def loaded(self, source: Source, chunks: int, seconds: float) -> None:
        """The mover loaded so many chunks from there in that time."""
        rate = self.rate(source)
        rate.add(chunks, seconds, SMOOTHING if rate.value_s < self.recompute.value_s else PROBE_WEIGHT)
        if source is None:
            self._used += chunks

    def computed(self, chunks: float, seconds: float) -> None:
        """An engine computed so many chunks in that time."""
        self.recompute.add(chunks, seconds)
