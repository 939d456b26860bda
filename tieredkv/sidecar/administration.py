"""What an administrator may say: hints, recordings, the end.

Ownership: the loop's thread. A method that raises ProtocolError or ConnectionLost wants that connection
closed, and nothing else.
"""

import logging
from collections.abc import Callable

from tieredkv import protocol
from tieredkv.errors import ProtocolError
from tieredkv.metrics import HINTS, Totals
from tieredkv.sidecar.connection import Connection
from tieredkv.sidecar.recordings import Recordings
from tieredkv.sidecar.warmtier import WarmTier

logger = logging.getLogger("tieredkv.sidecar")


class Administration:
    """Serves administrators' connections."""

    def __init__(self, tier: WarmTier, recordings: Recordings, totals: Totals, end: Callable[[], None]) -> None:
        """`end` makes the sidecar end soon."""
        self._tier = tier
        self._recordings = recordings
        self._totals = totals
        self._end = end

    def serve(self, connection: Connection, message: protocol.FromEngine) -> None:
        """Do what a welcomed administrator says."""
        match message:
            case protocol.Hint():
                pools = sum(pool.hint(message) for pool in self._tier.pools.values())
                self._totals.add(HINTS, "taken" if pools else "unknown_session")
                connection.send(protocol.Hinted(pools))
            case protocol.Prefetch():
                begun = [chunks for pool in self._tier.pools.values() if (chunks := pool.prefetch(message)) is not None]
                connection.send(protocol.Prefetched(len(begun), sum(begun)))
            case protocol.Record(on=True):
                self._recordings.start(connection)
            case protocol.Record():
                self._recordings.stop(connection)
            case protocol.Stop():
                logger.info("told to stop by uid %d", connection.peer_uid)
                self._end()
            case _:
                raise ProtocolError(f"{type(message).__name__} from an admin")
