"""Pinning with a runtime library that fails on demand; no device needed."""

import logging

import numpy as np
import pytest
import torch

from tieredkv.tiers.slots import slot_bytes
from tieredkv.vllm_client.attachment import Attachment
from tieredkv.vllm_client.cuda_pin import Pinning

PIECE = 4096


class ScriptedRuntime(dict[str, object]):
    """CUDA's three functions over a set of registered addresses; `fail_at` is the n-th registration."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.registered: dict[int, int] = {}
        self.calls = 0
        self.pending_error = 0
        self._fail_at = fail_at
        super().__init__(
            cudaHostRegister=self._register,
            cudaHostUnregister=self._unregister,
            cudaGetLastError=self._last_error,
        )

    def _register(self, address: int, size: int, flags: int) -> int:
        self.calls += 1
        if self.calls == self._fail_at:
            self.pending_error = 2
            return 2
        assert address not in self.registered
        self.registered[address] = size
        return 0

    def _unregister(self, address: int) -> int:
        del self.registered[address]
        return 0

    def _last_error(self) -> int:
        error, self.pending_error = self.pending_error, 0
        return error


def attachment(size_bytes: int) -> Attachment:
    return Attachment.over(
        np.zeros(size_bytes, np.uint8), epoch=1, offsets=np.array([0, 512]), slot_bytes=slot_bytes(64)
    )


def pinning(runtime: ScriptedRuntime) -> Pinning:
    return Pinning(torch.device("cuda", 0), runtime=runtime, piece_bytes_max=PIECE)  # type: ignore[arg-type]


def test_pieces_cover_the_arena_and_are_undone() -> None:
    runtime = ScriptedRuntime()
    arena = attachment(2 * PIECE + 100)
    pinned = pinning(runtime).pin(arena)
    assert pinned is not None
    assert runtime.registered == {
        arena.arena_address: PIECE,
        arena.arena_address + PIECE: PIECE,
        arena.arena_address + 2 * PIECE: 100,
    }
    assert pinned.bounds.tolist() == [arena.arena_address + PIECE, arena.arena_address + 2 * PIECE]
    pinning(runtime).unpin(pinned)
    assert runtime.registered == {}


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_a_failed_piece_undoes_the_others_and_warns_once(fail_at: int, caplog: pytest.LogCaptureFixture) -> None:
    runtime = ScriptedRuntime(fail_at)
    pins = pinning(runtime)
    with caplog.at_level(logging.WARNING):
        assert pins.pin(attachment(3 * PIECE)) is None
        assert runtime.registered == {}
        assert runtime.pending_error == 0
        runtime.calls = 0
        assert pins.pin(attachment(3 * PIECE)) is None
    assert len(caplog.records) == 1
    assert "memlock" in caplog.text


def test_without_a_runtime_library_memory_stays_pageable(caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the library")
    assert Pinning(torch.device("cuda", 0)).pin(attachment(PIECE)) is None
    assert len(caplog.records) == 1
