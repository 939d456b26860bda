"""Registration of an arena with the CUDA driver, as pinned memory."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from tieredkv.vllm_client.attachment import Attachment
from tieredkv.vllm_client.copyplan import Ints

logger = logging.getLogger(__name__)

PIECE_BYTES_MAX: Final = 64 * 1024**3
"""Larger registrations fail on some drivers."""

_PORTABLE: Final = 1  # cudaHostRegisterPortable: pinned for every context of the process

Runtime = Mapping[str, Callable[..., int]]
"""Functions of CUDA's runtime library by name; each answers an error code."""


@dataclass(frozen=True, slots=True, eq=False)
class PinnedArena:
    """A registered arena, as the addresses of its pieces in order; it keeps the arena mapped."""

    attachment: Attachment
    addresses: tuple[int, ...]

    @property
    def bounds(self) -> Ints:
        """Addresses where one piece ends and the next starts: no copy may reach across one."""
        return np.array(self.addresses[1:], np.int64)


class Pinning:
    """Registers arenas with the driver; says once why it cannot."""

    def __init__(
        self,
        device: torch.device,
        *,
        runtime: Runtime | None = None,
        piece_bytes_max: int = PIECE_BYTES_MAX,
    ) -> None:
        """`runtime` replaces CUDA's own runtime library. `piece_bytes_max` is a multiple of a page."""
        self._device = device
        self._runtime = runtime
        self._piece_bytes_max = piece_bytes_max
        self._warned = False

    def pin(self, attachment: Attachment) -> PinnedArena | None:
        """Register the whole arena, or nothing of it: then None, and one warning."""
        runtime = self._load()
        if runtime is None:
            return None
        registered: list[int] = []
        for offset in range(0, attachment.arena_bytes, self._piece_bytes_max):
            address = attachment.arena_address + offset
            size = min(self._piece_bytes_max, attachment.arena_bytes - offset)
            code = runtime["cudaHostRegister"](address, size, _PORTABLE)
            if code != 0:
                # The runtime remembers the error and would report it at some later, innocent call.
                runtime["cudaGetLastError"]()
                self._unregister(runtime, registered)
                self._warn(f"cudaHostRegister of {size} bytes answered {code}; see the memlock limit (ulimit -l)")
                return None
            registered.append(address)
        return PinnedArena(attachment, tuple(registered))

    def unpin(self, pinned: PinnedArena) -> None:
        """Undo `pin`; no copy may touch the arena any more."""
        runtime = self._load()
        assert runtime is not None, "what is pinned was pinned by a runtime"
        self._unregister(runtime, pinned.addresses)

    def _unregister(self, runtime: Runtime, addresses: tuple[int, ...] | list[int]) -> None:
        for address in reversed(addresses):
            code = runtime["cudaHostUnregister"](address)
            if code != 0:
                runtime["cudaGetLastError"]()
                logger.warning("tieredkv: cudaHostUnregister answered %d", code)

    def _load(self) -> Runtime | None:
        if self._runtime is not None:
            return self._runtime
        try:
            from vllm.distributed.device_communicators.cuda_wrapper import CudaRTLibrary

            # Every thread has a current device of its own, and the caller may be a new thread.
            torch.cuda.set_device(self._device)
            runtime: Runtime = CudaRTLibrary().funcs
        except (AssertionError, AttributeError, ImportError, OSError, RuntimeError) as error:
            self._warn(f"no CUDA runtime library: {error}")
            return None
        return runtime

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("tieredkv: the arena is not pinned, copies to the GPU will be slow: %s", reason)
