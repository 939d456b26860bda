"""How other threads tell the loop something: a queue, and a descriptor that wakes its selector."""

import os
from queue import Empty, SimpleQueue


class Inbox:
    """Events for the loop. `post` may be called from any thread and from a signal handler."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events: SimpleQueue[object] = SimpleQueue()

    def fileno(self) -> int:
        """Readable when events wait."""
        return self._fd

    def post(self, event: object) -> None:
        """Queue an event and wake the loop."""
        self._events.put(event)
        os.eventfd_write(self._fd, 1)

    def take(self) -> list[object]:
        """All events that wait, in order. Only the loop's thread."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return []
        events: list[object] = []
        while True:
            try:
                events.append(self._events.get_nowait())
            except Empty:
                return events
