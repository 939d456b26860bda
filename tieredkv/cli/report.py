"""What commands print: a JSON document where the user wants one, tables for people otherwise."""

import json
import sys
from pathlib import Path
from typing import Final

from tieredkv.errors import ConfigError

STANDARD_OUTPUT: Final = "-"


def check_destination(destination: str | None) -> None:
    """Raise ConfigError when a report could not be written there. Call it before long work."""
    if destination is None or destination == STANDARD_OUTPUT:
        return
    path = Path(destination)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"--json {destination}: cannot write there; name a file in a folder that exists")


def write_json(destination: str, document: object) -> None:
    """Write `document` to a file, or to standard output for '-'. Raises ConfigError when it cannot."""
    text = json.dumps(document, indent=2) + "\n"
    if destination == STANDARD_OUTPUT:
        sys.stdout.write(text)
        return
    try:
        Path(destination).write_text(text)
    except OSError as error:
        raise ConfigError(f"--json {destination}: {error.strerror}; name a file that you may write") from None
