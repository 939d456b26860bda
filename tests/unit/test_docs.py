"""The documents do not point at what is not there."""

import re
from pathlib import Path

import pytest

from tieredkv.metrics import COUNTERS, SLOTS
from tieredkv.vllm_client.supported import VLLM_BELOW, VLLM_MIN

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`|&& )make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    assert [name for name in (*COUNTERS, SLOTS) if name not in text] == []


def test_the_readme_names_the_supported_range() -> None:
    last = f"0.{int(VLLM_BELOW.partition('.')[2]) - 1}"
    assert f"{VLLM_MIN} to {last}" in (ROOT / "README.md").read_text()
