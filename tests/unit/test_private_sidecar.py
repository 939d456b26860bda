"""Starting a private sidecar may fail; vLLM may not."""

from pathlib import Path

import pytest

from tieredkv.clock import ManualClock
from tieredkv.vllm_client.private import PrivateSidecar


def test_a_folder_that_cannot_be_made_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    clock = ManualClock()
    private = PrivateSidecar("engine", 1 << 20, clock)
    private.start()
    clock.advance(60)
    private.start()
    assert caplog.text.count("no private sidecar can be started") == 1
