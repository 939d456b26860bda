"""A file that lines are added to, by a process that has better things to do."""

import logging
import os
from io import FileIO
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

FLUSH_INTERVAL_S: Final = 1.0
BUFFER_BYTES_MAX: Final = 1 << 18


class LineFile:
    """Not thread safe; `close` it at the end.

    The file is new and readable by its owner only; one that is there already is renamed to `*.old`,
    because its pseudonyms mean something else. Raises OSError when it cannot be opened; a later failure
    to write ends the recording with one warning.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._flushed_s: float | None = None
        if path.is_file():
            path.replace(path.with_name(path.name + ".old"))
        self._file = FileIO(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600))
        self._buffer = bytearray()

    @property
    def closed(self) -> bool:
        """Nothing is written any more."""
        return self._file.closed

    def add(self, line: bytes, now_s: float) -> None:
        """Add a line, its end included. It reaches the file when the buffer is full or a second has passed."""
        if self._file.closed:
            return
        if self._flushed_s is None:
            self._flushed_s = now_s
        self._buffer += line
        if len(self._buffer) >= BUFFER_BYTES_MAX or now_s - self._flushed_s >= FLUSH_INTERVAL_S:
            self._flushed_s = now_s
            self._flush()

    def close(self) -> None:
        """Write out what is buffered. Closing twice is fine."""
        if not self._file.closed:
            self._flush()
            self._file.close()

    def _flush(self) -> None:
        try:
            while self._buffer:
                del self._buffer[: self._file.write(self._buffer)]
        except OSError as error:
            self._file.close()
            self._buffer.clear()
            logger.warning("trace: recording ends, %s cannot be written: %s", self._path, error)
