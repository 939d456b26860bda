"""How a demo fails."""

from tieredkv.errors import TieredKVError


class DemoFailed(TieredKVError):
    """The demo could not be carried through; its text says what failed and quotes the log, if there is one."""
