"""After the adoption of a crashed sidecar's pools: may anybody still write into slots leased by it?

Slots that it had leased stay quarantined until each process that was attached to it is either gone or has
come back together with its engine's scheduler, which then named the slots that are still being written.
"""

from collections.abc import Iterable

from tieredkv.sidecar.attachments import AttachmentLock, AttachmentLocks, engine_hash
from tieredkv.sidecar.session import Session


class Quarantine:
    """The processes of before, as far as they are not settled. Owned by the loop's thread."""

    def __init__(self, locks: AttachmentLocks) -> None:
        """Take in the lock files that lie there now: before any new one is made."""
        self._locks = locks
        self._writers = locks.former()

    @property
    def writers(self) -> int:
        """How many processes are not settled."""
        return len(self._writers)

    def settle(self, sessions: Iterable[Session]) -> bool:
        """Forget those that are gone or came back; True when none is left."""
        back = {engine_hash(session.engine_id): session for session in sessions}
        self._writers = [lock for lock in self._writers if not self._settled(lock, back.get(lock.engine))]
        return not self._writers

    def _settled(self, lock: AttachmentLock, session: Session | None) -> bool:
        if session is None:
            return self._locks.released(lock)
        # A process of this engine lives; only the scheduler knows what is being written.
        if session.scheduler is None:
            return False
        return (lock.role, lock.rank) in session.connections or self._locks.released(lock)
