"""The compiled copy loop of the CPU back end; importing it imports numba (a second), so do it late.

glibc's memcpy streams past the caches only for pieces of many MiB. Pages are far smaller, so each line
of the destination would first be read, into the cache that the engine computes with. This loop uses
non-temporal stores at any size, and copies several pieces line by line in turn: then several cache
misses and address translations are under way at once, where one piece has to wait for each.
"""

# pyright: basic, reportCallIssue=false
# numba and llvmlite are untyped, and @intrinsic takes away the first parameter.

from typing import Any, Final

from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tieredkv.vllm_client.llvmlite_names import deny_dunders

deny_dunders()

VECTOR_BYTES: Final = 32
LINE_BYTES: Final = 64
SINGLE_BYTES: Final = 128
"""Bytes copied per turn of the loop where a piece is copied alone."""
WAYS: Final = 8
"""Pieces copied in turn; 4 and 16 are slower."""
PREFETCH_LINES: Final = 2
STAGGER_BYTES: Final = 512
"""Distance of the places where the pieces are copied: pages start at equal cache sets."""
STAGGERED_BYTES_MIN: Final = 8 * 1024
"""Smaller pieces gain nothing."""

_I64: Final = ir.IntType(64)
_VECTOR: Final = ir.VectorType(_I64, VECTOR_BYTES // 8)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _stream(_typing: Any, destinations: Any, sources: Any, size: Any, turn: Any, stagger: Any) -> Any:
    """Copy `size` bytes past the caches from each of the sources (a tuple of addresses) to its destination.

    `size` is a positive multiple of `turn`, a literal: the bytes copied of each piece before the next has
    its turn. Piece n starts at its byte n * `stagger` (that is less than `size`) and wraps around.
    Destinations are aligned to 32 bytes.
    """
    vectors = turn.literal_value // VECTOR_BYTES

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, start = (cgutils.unpack_tuple(builder, addresses) for addresses in arguments[:2])
        size, stagger = arguments[2], arguments[4]
        starts_at = [builder.mul(stagger, _I64(way)) for way in range(len(to))]
        before = builder.block
        loop = builder.append_basic_block("stream")
        after = builder.append_basic_block("streamed")
        builder.branch(loop)
        builder.position_at_end(loop)
        offset = builder.phi(_I64)
        offset.add_incoming(_I64(0), before)

        def place(base: Any, at: Any, number: int) -> Any:
            address = builder.add(builder.add(base, at), _I64(number * VECTOR_BYTES))
            return builder.inttoptr(address, _VECTOR.as_pointer())

        hint = builder.module.add_metadata([ir.IntType(32)(1)])
        for destination, source, begin in zip(to, start, starts_at, strict=True):
            at = builder.add(offset, begin)
            at = builder.select(builder.icmp_unsigned("<", at, size), at, builder.sub(at, size))
            values = [builder.load(place(source, at, number), align=1) for number in range(vectors)]
            for number, value in enumerate(values):
                store = builder.store(value, place(destination, at, number), align=VECTOR_BYTES)
                store.set_metadata("nontemporal", hint)
        following = builder.add(offset, _I64(vectors * VECTOR_BYTES))
        offset.add_incoming(following, loop)
        builder.cbranch(builder.icmp_unsigned("<", following, size), loop, after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(destinations, sources, size, turn, stagger), generate


@intrinsic  # type: ignore[untyped-decorator]
def _prefetch(_typing: Any, address: Any) -> Any:
    """Begin to fetch the line at `address`; never faults."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        wanted = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, wanted, "llvm.prefetch.p0i8")
        # To read, not to be kept in the caches, data.
        hints = [number(0), number(0), number(1)]
        builder.call(function, [builder.inttoptr(arguments[0], pointer), *hints])
        return context.get_dummy_value()

    return types.void(address), generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy(_typing: Any, destination: Any, source: Any, size: Any) -> Any:
    """memcpy of `size` bytes."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, start, count = arguments
        pointer = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(builder, builder.inttoptr(to, pointer), builder.inttoptr(start, pointer), count, 1, align=1)
        return context.get_dummy_value()

    return types.void(destination, source, size), generate


@intrinsic  # type: ignore[untyped-decorator]
def _fence(_typing: Any) -> Any:
    """Order non-temporal stores before whatever follows, also as other processes see it."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@njit(nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _copy_alone(to: Any, start: Any, left: Any) -> None:
    head = min(-to & (VECTOR_BYTES - 1), left)
    if head:
        _copy(to, start, head)
        to, start, left = to + head, start + head, left - head
    streamed = left // SINGLE_BYTES * SINGLE_BYTES
    if streamed:
        _stream((to,), (start,), streamed, SINGLE_BYTES, 0)
    if left > streamed:
        _copy(to + streamed, start + streamed, left - streamed)


@njit(nogil=True, inline="always")  # type: ignore[untyped-decorator]
def _are_alike(d: Any, sizes: Any, i: Any) -> Any:
    """Whether the pieces i to i + WAYS - 1 exist, have one size and aligned destinations."""
    if i + WAYS > len(sizes) or sizes[i] < LINE_BYTES:
        return False
    alike = True
    for j in range(i, i + WAYS):
        alike = alike and sizes[j] == sizes[i] and d[j] & (VECTOR_BYTES - 1) == 0
    return alike


def _copy_pieces(d: Any, s: Any, sizes: Any) -> None:
    count = len(sizes)
    i = 0
    while i < count:
        if not _are_alike(d, sizes, i):
            _copy_alone(d[i], s[i], sizes[i])
            i += 1
            continue
        # The hardware foresees lines of a page, but not the next page.
        for j in range(i + WAYS, min(i + 2 * WAYS, count)):
            for line in range(PREFETCH_LINES):
                _prefetch(s[j] + line * LINE_BYTES)
        streamed = sizes[i] // LINE_BYTES * LINE_BYTES
        _stream(
            (d[i], d[i + 1], d[i + 2], d[i + 3], d[i + 4], d[i + 5], d[i + 6], d[i + 7]),
            (s[i], s[i + 1], s[i + 2], s[i + 3], s[i + 4], s[i + 5], s[i + 6], s[i + 7]),
            streamed,
            LINE_BYTES,
            STAGGER_BYTES if streamed >= STAGGERED_BYTES_MIN else 0,
        )
        if sizes[i] > streamed:
            for j in range(i, i + WAYS):
                _copy(d[j] + streamed, s[j] + streamed, sizes[i] - streamed)
        i += WAYS
    _fence()


def _compile() -> Any:
    pointers = types.Array(types.int64, 1, "C", readonly=False)
    signature = types.void(pointers, pointers, pointers)
    try:
        return njit(signature, nogil=True, cache=True)(_copy_pieces)
    except RuntimeError:  # nowhere to keep compiled code: compile once per process
        return njit(signature, nogil=True)(_copy_pieces)


copy_pieces: Any = _compile()
"""copy_pieces(destinations, sources, sizes), int64 arrays; runs without the GIL."""
