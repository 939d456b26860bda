"""The broad `except` of the scheduler's side: a defect of ours must not end vLLM."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

logger = logging.getLogger("tieredkv.manager")


class Breakable(Protocol):
    """Something that can be switched off for good."""

    broken: bool

    def disable(self) -> None: ...

    def describe(self) -> str: ...


S = TypeVar("S", bound=Breakable)
P = ParamSpec("P")
R = TypeVar("R")


def guarded(fallback: Callable[[], R]) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Log a defect once with the owner's state, switch the owner off, and answer `fallback()` from then on."""

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @wraps(method)
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            if self.broken:
                return fallback()
            try:
                return method(self, *args, **kwargs)
            except Exception:  # whatever it is, vLLM must go on: it is logged with our state, and tiering ends here
                logger.exception("tieredkv disabled after an internal error: %s", self.describe())
                self.disable()
                return fallback()

        return call

    return decorate
