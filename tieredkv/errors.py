"""Errors that reach a person. Failures of operation are values, not exceptions (docs/decisions/0002)."""


class TieredKVError(Exception):
    """Base of all errors raised on purpose; its text is one line that a user can act on."""


class ConfigError(TieredKVError, ValueError):
    """Something that the user wrote is wrong. Text: what, where, what would be right."""


class UnsupportedVLLM(TieredKVError):
    """The installed vLLM is outside the range that the seam was tested with."""


class ProtocolError(TieredKVError):
    """A peer sent bytes that are not a message of ours; its connection must be closed."""


class VineyardError(TieredKVError):
    """vineyardd refused, vanished or answered nonsense."""


class Unreachable(TieredKVError, ConnectionError):
    """No sidecar answers at the given socket."""
