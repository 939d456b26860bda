"""Running the command line inside the test's process, as a person would type it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tieredkv.cli.main import main


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    err: str

    def complaints(self) -> list[str]:
        """Standard error's lines, all of which must be complaints of ours."""
        lines = self.err.splitlines()
        assert all(line.startswith("tieredkv: error: ") for line in lines), self.err
        return [line.removeprefix("tieredkv: error: ") for line in lines]


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `tieredkv` with these words, in an environment without settings of ours."""
    for name in ("TIEREDKV_CONFIG", "TIEREDKV_WARM_SIZE", "PYTHONHASHSEED"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: object) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return run
