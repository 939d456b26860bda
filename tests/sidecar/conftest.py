"""Sidecars for tests: one per test, or one that the harmless tests of a module share."""

from collections.abc import Callable, Generator, Iterator

import pytest

from .engine import Link
from .process import SidecarProcess

Start = Callable[..., SidecarProcess]


@pytest.fixture(autouse=True)
def hang_up() -> Iterator[None]:
    """Closes what a test left open."""
    yield
    while Link.opened:
        Link.opened.pop().close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows what the test's sidecars said when it failed."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, SidecarProcess):
                report.sections.append(("Log of the sidecar", value.log()[-4000:]))
    return report


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts sidecars that end with the test."""
    started: list[SidecarProcess] = []

    def make(*, run: bool = True, **settings: object) -> SidecarProcess:
        sidecar = SidecarProcess(**settings)  # type: ignore[arg-type]
        started.append(sidecar)
        return sidecar.start() if run else sidecar

    yield make
    for sidecar in started:
        sidecar.clean_up()


@pytest.fixture
def sidecar(start: Start) -> SidecarProcess:
    """One sidecar of 32 MiB, for this test alone."""
    return start()


@pytest.fixture(scope="module")
def shared() -> Iterator[SidecarProcess]:
    """One sidecar for tests that leave it as it was."""
    sidecar = SidecarProcess()
    yield sidecar.start()
    sidecar.clean_up()
