"""Makes numba bearable for vLLM: llvmlite's library object must not answer to every name.

It takes any attribute for a function of its library. vLLM asks everything that any module holds for its
`__dict__` when an engine starts, and fails on what it gets: the second engine of a process that has
loaded numba would not start.
"""

# pyright: basic

from typing import Any

from llvmlite.binding import ffi  # type: ignore[import-untyped]


def deny_dunders() -> None:
    """Let the library object lack `__dict__` and its like, as objects do. May be called again."""
    library: Any = ffi._lib_wrapper
    look_up = library.__getattr__

    def guarded(self: object, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return look_up(self, name)

    library.__getattr__ = guarded
