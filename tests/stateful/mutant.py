"""What a planted bug is."""

from dataclasses import dataclass
from typing import Final

MACHINE: Final = "tests/stateful/test_manager_machine.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old` occurs once in `file`; `new` is the bug. `tests` (a file, or a part of it) must fail."""

    name: str
    why: str
    file: str
    old: str
    new: str
    tests: str = MACHINE
