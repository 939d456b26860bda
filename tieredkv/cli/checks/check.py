"""What a check found."""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """OK: nothing to do. WARN: works, with a cost or a risk. FAIL: tiering would not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a report. `remedy` is empty only when the verdict is OK."""

    name: str
    verdict: Verdict
    finding: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.remedy or self.verdict is Verdict.OK

    def text(self) -> str:
        """Name, finding and remedy on one line."""
        return f"{self.name}: {self.finding}" + (f" -> {self.remedy}" if self.remedy else "")

    def line(self) -> str:
        """The whole line, verdict first."""
        return f"{self.verdict.value}: {self.text()}"

    def as_document(self) -> dict[str, str]:
        """The check as JSON holds it."""
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "finding": self.finding,
            "remedy": self.remedy,
        }
