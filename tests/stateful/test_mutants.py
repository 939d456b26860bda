"""The list of mutants keeps up with the source; `python -m tests.stateful.mutants` runs them."""

import shutil
from pathlib import Path

import pytest

from tests.stateful.mutant import Mutant
from tests.stateful.mutants import MUTANTS, ROOT, apply


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_still_fits_the_source(mutant: Mutant, tmp_path: Path) -> None:
    target = tmp_path / mutant.file
    target.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutant.file, target)
    apply(mutant, tmp_path)
    compile(target.read_text(), mutant.file, "exec")
    assert (ROOT / mutant.tests.partition("::")[0]).is_file()


def test_names_are_unique() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
