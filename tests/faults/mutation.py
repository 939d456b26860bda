"""Changing valid frames into what a broken or hostile peer might send. All from one random source."""

import random
import re
from collections.abc import Sequence
from typing import Final

FRAME_BYTES_MAX: Final = 32 * 1024
"""Mutated frames are cut here, so that each fits into a socket's buffer."""

_CHANGES: Final = (1, 1, 1, 2, 4)
_NUMBER: Final = re.compile(rb"-?\d+")
_INTERESTING: Final = (0, 1, 0x20, 0x22, 0x7F, 0x80, 0x90, 0x9F, 0xC0, 0xC1, 0xCA, 0xCF, 0xD3, 0xDB, 0xDD, 0xDF, 0xFF)
_NUMBERS: Final = (
    b"-1", b"0", b"1", b"1.5", b"1e308", b"1e9999", b"2147483648", b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551615", b"18446744073709551616", b"-9223372036854775809", b"9" * 400, b"null", b"true", b'"7"',
    b"[]", b"{}", b"NaN",
)  # fmt: skip
_TOKENS: Final = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\u0000", b"\\ud800", b"\xff", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
    b"[" * 2000, b'{"a":' * 500, b"\x91" * 3000, b"\x81\xa1a" * 1000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xcb\x7f\xf0\0\0\0\0\0\0", b"\xcf" + b"\xff" * 8,
    b"\xd3" + b"\x80" + b"\0" * 7, b'"type"', b'"payloads"', b'"object_id"', b'"compress":true,',
)  # fmt: skip


def mutated(frame: bytes, corpus: Sequence[bytes], source: random.Random) -> bytes:
    """`frame` after one to four changes; some take a part of another frame of the corpus."""
    body = bytearray(frame)
    for _ in range(source.choice(_CHANGES)):
        _change(body, corpus, source)
    del body[FRAME_BYTES_MAX:]
    return bytes(body)


def _change(body: bytearray, corpus: Sequence[bytes], source: random.Random) -> None:
    at = source.randrange(len(body) + 1)
    end = min(len(body), at + source.choice((1, 2, 4, 8, 64, 512)))
    match source.randrange(10):
        case 0 if body:
            body[at - 1] ^= 1 << source.randrange(8)
        case 1 if body:
            body[at - 1] = source.choice(_INTERESTING)
        case 2:
            body[at:end] = source.randbytes(end - at)
        case 3:
            del body[at:end]
        case 4:
            body[at:at] = body[at:end] * source.choice((1, 2, 16))
        case 5:
            del body[at:]
        case 6:
            body[at:at] = source.choice(_TOKENS)
        case 7:
            other = source.choice(corpus)
            cut = source.randrange(len(other) + 1)
            body[at:] = other[cut:]
        case 8:
            length = source.choice((0, 1, 8, max(len(body) - 8, 0), len(body), 1 << 20, 1 << 31, 1 << 63))
            body[:8] = length.to_bytes(8, "little")
        case _:
            numbers = list(_NUMBER.finditer(body[:2048]))
            if numbers:
                start, stop = source.choice(numbers).span()
                body[start:stop] = source.choice(_NUMBERS)
