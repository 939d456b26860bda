"""The copy plan against an oracle that moves one byte at a time."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tieredkv.vllm_client.copyplan import (
    CopyLayout,
    GroupRef,
    ImpossibleJob,
    ImpossibleLayout,
    Pieces,
    TensorShape,
)

ARENA = 1 << 40  # addresses are only numbers here; tensors live far below the arena


@dataclass(frozen=True)
class Case:
    """A layout and a job that fits it."""

    tensors: list[TensorShape]
    groups: list[list[GroupRef]]
    blocks_per_chunk: int
    rank: int
    world_size: int
    rank_bytes: int
    block_ids: list[int]
    group_sizes: list[int]
    block_indices: list[int]
    bodies: list[int]

    def layout(self) -> CopyLayout:
        return CopyLayout(
            self.tensors,
            self.groups,
            blocks_per_chunk=self.blocks_per_chunk,
            rank=self.rank,
            world_size=self.world_size,
            rank_bytes=self.rank_bytes,
        )

    def plan(self) -> Pieces:
        return self.layout().plan(
            np.array(self.block_ids, np.int32),
            self.group_sizes,
            self.block_indices,
            np.array(self.bodies, np.int64),
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    packed = draw(st.booleans())
    per_chunk = draw(st.integers(1, 4))
    world_size = draw(st.integers(1, 3))
    tensors: list[TensorShape] = []
    pages: list[int] = [draw(st.integers(1, 9)) for _ in range(draw(st.integers(1, 4)))]
    start = 1 << 20
    if packed:  # all layers of a block side by side: neighbouring pieces can be joined
        stride = sum(pages) + draw(st.integers(0, 3))
        for page in pages:
            tensors.append(TensorShape(start, stride, 8))
            start += page
    else:
        for page in pages:
            stride = page + draw(st.integers(0, 3))
            tensors.append(TensorShape(start, stride, 8))
            start += stride * 8 + draw(st.integers(0, 2))
    groups = [
        [
            GroupRef(index, draw(st.integers(1, pages[index])))
            for index in draw(st.lists(st.integers(0, len(pages) - 1), min_size=1, max_size=4))
        ]
        for _ in range(draw(st.integers(1, 3)))
    ]
    needed = max(sum(ref.page_bytes for ref in refs) for refs in groups) * per_chunk
    rank_bytes = needed + draw(st.integers(0, 5))
    sizes = [draw(st.integers(0, 7)) for _ in groups]
    indices = [draw(st.integers(0, 9)) for _ in groups]
    chunks = sum(-(-(n + i % per_chunk) // per_chunk) if n else 0 for n, i in zip(sizes, indices, strict=True))
    slots = draw(st.permutations(range(chunks + 2)))[:chunks]
    slot_bytes = rank_bytes * world_size + draw(st.integers(0, 4))
    return Case(
        tensors=tensors,
        groups=groups,
        blocks_per_chunk=per_chunk,
        rank=draw(st.integers(0, world_size - 1)),
        world_size=world_size,
        rank_bytes=rank_bytes,
        block_ids=[draw(st.integers(0, 7)) for _ in range(sum(sizes))],
        group_sizes=sizes,
        block_indices=indices,
        bodies=[ARENA + slot * slot_bytes for slot in slots],
    )


def bytes_of(case: Case) -> dict[int, int]:
    """Body byte -> page byte, straight from the definition of a body."""
    moved: dict[int, int] = {}
    blocks, bodies = iter(case.block_ids), iter(case.bodies)
    for refs, size, index in zip(case.groups, case.group_sizes, case.block_indices, strict=True):
        place, body = index % case.blocks_per_chunk, -1
        for number in range(size):
            if number == 0 or place == case.blocks_per_chunk:
                place %= case.blocks_per_chunk
                body = next(bodies)
            block = next(blocks)
            offset = case.rank * case.rank_bytes
            for ref in refs:
                tensor = case.tensors[ref.tensor_index]
                for byte in range(ref.page_bytes):
                    target = body + offset + place * ref.page_bytes + byte
                    assert target not in moved
                    moved[target] = tensor.base_ptr + block * tensor.block_stride_bytes + byte
                offset += ref.page_bytes * case.blocks_per_chunk
            place += 1
    assert next(bodies, None) is None
    return moved


def expand(pieces: Pieces) -> dict[int, int]:
    moved: dict[int, int] = {}
    for page, body, size in zip(pieces.pages.tolist(), pieces.bodies.tolist(), pieces.sizes.tolist(), strict=True):
        assert size > 0
        for byte in range(size):
            assert body + byte not in moved, "a byte is moved twice"
            moved[body + byte] = page + byte
    return moved


@given(cases())
def test_moves_exactly_the_bytes_of_the_definition(case: Case) -> None:
    pieces = case.plan()
    assert expand(pieces) == bytes_of(case)
    assert pieces.total_bytes == len(bytes_of(case))


@given(cases())
def test_no_two_pieces_could_be_one(case: Case) -> None:
    pieces = case.plan()
    ends = list(zip((pieces.pages + pieces.sizes).tolist(), (pieces.bodies + pieces.sizes).tolist(), strict=True))
    starts = list(zip(pieces.pages.tolist(), pieces.bodies.tolist(), strict=True))
    assert not [1 for end, start in zip(ends, starts[1:], strict=False) if end == start]


@given(cases())
def test_bytes_stay_in_the_region_of_the_rank(case: Case) -> None:
    pieces = case.plan()
    regions = [
        range(body + case.rank * case.rank_bytes, body + (case.rank + 1) * case.rank_bytes) for body in case.bodies
    ]
    for body, size in zip(pieces.bodies.tolist(), pieces.sizes.tolist(), strict=True):
        assert any(body in region and body + size - 1 in region for region in regions)


@given(cases(), st.lists(st.integers(0, 200), max_size=3))
def test_cut_keeps_bytes_and_respects_bounds(case: Case, steps: list[int]) -> None:
    pieces = case.plan()
    bounds = np.array(sorted({ARENA + step for step in steps}), np.int64)
    cut = pieces.cut(bounds)
    assert expand(cut) == expand(pieces)
    for bound in bounds.tolist():
        assert not ((cut.bodies < bound) & (cut.bodies + cut.sizes > bound)).any()


def test_a_packed_block_is_one_piece() -> None:
    layers = [TensorShape(1000 + 64 * layer, 256, 4) for layer in range(4)]
    layout = CopyLayout(layers, [[GroupRef(layer, 64) for layer in range(4)]], blocks_per_chunk=1, rank_bytes=256)
    pieces = layout.plan(np.array([2, 0]), [2], [5], np.array([ARENA, ARENA + 1000]))
    assert pieces.sizes.tolist() == [256, 256]
    assert pieces.pages.tolist() == [1000 + 512, 1000]


def test_neighbouring_blocks_of_a_chunk_are_one_piece() -> None:
    layout = CopyLayout([TensorShape(0, 64, 8)], [[GroupRef(0, 64)]], blocks_per_chunk=4, rank_bytes=256)
    pieces = layout.plan(np.array([3, 4, 5, 6]), [4], [0], np.array([ARENA]))
    assert pieces.sizes.tolist() == [256]


def simple() -> CopyLayout:
    return CopyLayout([TensorShape(0, 64, 8)], [[GroupRef(0, 64)]], blocks_per_chunk=2, rank_bytes=128)


@pytest.mark.parametrize(
    ("blocks", "sizes", "indices", "bodies", "words"),
    [
        ([8], [1], [0], 1, "tensor of 8"),
        ([-1], [1], [0], 1, "blocks -1"),
        ([1, 2], [1], [0], 1, "2 blocks, but groups of 1"),
        ([1, 2], [2], [1], 1, "1 slots for 2 chunks"),
        ([1], [1], [0], 2, "2 slots for 1 chunks"),
        ([1], [1, 0], [0, 0], 1, "for 1 groups"),
        ([1], [1], [], 1, "0 indices"),
        ([1], [2, -1], [0, 0], 1, "for 1 groups"),
        ([], [-1], [0], 0, "negative"),
        ([1], [1], [-1], 1, "negative"),
    ],
)
def test_impossible_jobs_are_refused(
    blocks: list[int], sizes: list[int], indices: list[int], bodies: int, words: str
) -> None:
    with pytest.raises(ImpossibleJob, match=words):
        simple().plan(np.array(blocks, np.int32), sizes, indices, np.arange(bodies) * 1000 + ARENA)


@pytest.mark.parametrize(
    ("groups", "options", "words"),
    [
        ([[]], {}, "no layers"),
        ([[GroupRef(1, 8)]], {}, "tensor 1 of 1"),
        ([[GroupRef(0, 65)]], {}, "pages of 65"),
        ([[GroupRef(0, 0)]], {}, "pages of 0"),
        ([[GroupRef(0, 64)]], {"rank_bytes": 127}, "has 128 bytes, a rank's region 127"),
        ([[GroupRef(0, 64)]], {"blocks_per_chunk": 0}, "blocks_per_chunk 0"),
        ([[GroupRef(0, 64)]], {"rank": 1}, "rank 1 of 1"),
    ],
)
def test_impossible_layouts_are_refused(groups: list[list[GroupRef]], options: dict[str, int], words: str) -> None:
    with pytest.raises(ImpossibleLayout, match=words):
        CopyLayout([TensorShape(0, 64, 8)], groups, **{"blocks_per_chunk": 2, "rank_bytes": 128, **options})


def test_an_empty_job_moves_nothing() -> None:
    pieces = simple().plan(np.empty(0, np.int32), [0], [3], np.empty(0, np.int64))
    assert pieces.total_bytes == 0
