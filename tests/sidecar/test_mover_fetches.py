"""Fetches from another node: right bytes or a row that failed, and a peer that hangs stops nobody else."""

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from tests.unit.real_vineyardd import DEADLINE_S, RealVineyardd
from tieredkv.brain.moves import JobId, PeerId
from tieredkv.sidecar.keeper import SharedArena
from tieredkv.sidecar.mover.messages import Loss
from tieredkv.sidecar.mover.traffic import Movement
from tieredkv.tiers.arena import Arena
from tieredkv.tiers.remote import PIECE_BYTES
from tieredkv.tiers.slots import HEADER_BYTES, slot_bytes
from tieredkv.tiers.vineyard import VineyardClient

from .mover_rig import RESETS, Node
from .scripted_vineyardd import ScriptedVineyardd

# Comes in two pieces, and is padded.
BODY_BYTES = PIECE_BYTES + 1000
PEER = PeerId(3)


def node_on(vineyardd: RealVineyardd, *, mover: bool, slots: int = 32, pages: int = 8) -> Node:
    """A node whose places are blobs of a real vineyardd."""
    client = VineyardClient(vineyardd.folder / "v.sock", deadline_s=DEADLINE_S)
    blobs = client.create(slots + pages, slot_bytes(BODY_BYTES), deadline_s=DEADLINE_S)
    fd = client.take_arena_fd()
    client.close()
    return Node(
        slots=slots,
        pages=pages,
        body_bytes=BODY_BYTES,
        arena=SharedArena(fd, Arena(fd, blobs.arena_bytes)),
        offsets=blobs.offsets,
        blob_ids=blobs.ids,
        mover=mover,
    )


@pytest.fixture(scope="module")
def peer_vineyardd() -> Iterator[RealVineyardd]:
    vineyardd = RealVineyardd(size_bytes=32 << 20)
    yield vineyardd
    vineyardd.close()


@pytest.fixture(scope="module")
def peer(peer_vineyardd: RealVineyardd) -> Iterator[Node]:
    node = node_on(peer_vineyardd, mover=False)
    node.generation = 1000
    yield node
    node.close()


@pytest.fixture(scope="module")
def own_vineyardd() -> Iterator[RealVineyardd]:
    vineyardd = RealVineyardd(size_bytes=32 << 20)
    yield vineyardd
    vineyardd.close()


@pytest.fixture(scope="module")
def node(own_vineyardd: RealVineyardd) -> Iterator[Node]:
    node = node_on(own_vineyardd, mover=True)
    yield node
    node.close()


@pytest.fixture
def local() -> Iterator[Node]:
    """A node of its own, whose peers are scripted."""
    node = Node(body_bytes=BODY_BYTES, fetch_deadline_s=20.0)
    yield node
    node.close()


@pytest.fixture
def scripted() -> Iterator[ScriptedVineyardd]:
    vineyardd = ScriptedVineyardd()
    yield vineyardd
    vineyardd.close()


def acquaint(node: Node, peer: Node, vineyardd: RealVineyardd) -> None:
    node.held.set_peer(node.jobs_of, PEER, "127.0.0.1", vineyardd.port, peer.record.blob_ids)


def stored(peer: Node, slots: list[int], chunks: list[int]) -> list[int]:
    generations = peer.store(slots, chunks)
    peer.seal(slots, generations)
    return generations


def test_chunks_of_a_peer_arrive(node: Node, peer: Node, peer_vineyardd: RealVineyardd) -> None:
    acquaint(node, peer, peer_vineyardd)
    slots, chunks = list(range(32)), list(range(100, 132))
    generations = stored(peer, slots, chunks)
    # The other way round, so that no chunk lies where it came from.
    number, given = node.fetch(PEER, chunks, slots, generations, slots[::-1])
    assert not node.result(number).failed
    assert all(map(node.holds, slots[::-1], given, chunks))
    # They can be given on: they are sealed, and go to a page and prove themselves.
    number, pages = node.demote(chunks[:4], slots[::-1][:4], given[:4], [node.page(at) for at in range(4)])
    assert not node.result(number).failed
    assert node.holds(node.page(3), pages[3], chunks[3])


def test_what_a_peer_offered_is_pulled_into_pages(node: Node, peer: Node, peer_vineyardd: RealVineyardd) -> None:
    acquaint(node, peer, peer_vineyardd)
    chunks, pages = [150, 151], [node.page(6), node.page(7)]
    generations = stored(peer, [4, 5], chunks)
    number, given = node.pull(PEER, chunks, [4, 5], generations, pages)
    assert not node.result(number).failed
    assert all(map(node.holds, pages, given, chunks))
    assert node.held.traffic[Movement.PULL].chunks == 2
    number, slots = node.promote(chunks, pages, given, [0, 1])
    assert not node.result(number).failed
    assert node.holds(1, slots[1], 151)


def test_what_does_not_prove_itself_is_refused(node: Node, peer: Node, peer_vineyardd: RealVineyardd) -> None:
    slots, chunks = list(range(8)), list(range(200, 208))
    generations = stored(peer, slots, chunks)
    blob_ids = list(peer.record.blob_ids)
    blob_ids[0] = max(blob_ids) + (1 << 30)  # a blob that is gone
    node.held.set_peer(node.jobs_of, PEER, "127.0.0.1", peer_vineyardd.port, blob_ids)
    peer.store([1], [208])  # another tenancy
    peer.body(2)[BODY_BYTES - 1] ^= 0x80  # in its last piece
    (generations[3],) = peer.store([3], [203])  # not sealed
    (generations[4],) = peer.store([4], [204], resets=RESETS + 1)
    peer.seal([4], [generations[4]])
    before = node.held.traffic[Movement.FETCH].lost.copy()
    number, given = node.fetch(
        PEER, [*chunks[:5], 299, *chunks[6:], 209], [*slots, len(blob_ids)], [*generations, 5], list(range(9))
    )
    moved = node.result(number)
    assert moved.failed == {0, 1, 2, 3, 4, 5, 8}
    assert moved.unproven == {0, 1, 2, 4, 5, 8}, "what has no checksum yet may be asked for again"
    assert node.held.traffic[Movement.FETCH].lost - before == {
        Loss.MISSING: 2, Loss.TORN: 1, Loss.CORRUPT: 1, Loss.UNSEALED: 1, Loss.FOREIGN: 1, Loss.OTHER: 1,
    }  # fmt: skip
    assert node.holds(6, given[6], 206)
    assert node.holds(7, given[7], 207)
    refused = np.array(sorted(moved.failed))
    assert not node.pool.words.agree(refused, np.array(given, np.uint64)[refused]).any()
    acquaint(node, peer, peer_vineyardd)


def test_an_unknown_peer_and_one_that_was_dropped_fail_every_row(
    node: Node, peer: Node, peer_vineyardd: RealVineyardd
) -> None:
    number, _ = node.fetch(9, [300], [0], [1], [0])
    assert node.result(number).failed == {0}
    generations = stored(peer, [0], [301])
    node.held.drop_peer(node.jobs_of, PEER)
    number, _ = node.fetch(PEER, [301], [0], generations, [0])
    assert node.result(number).failed == {0}
    acquaint(node, peer, peer_vineyardd)
    number, given = node.fetch(PEER, [301], [0], generations, [0])
    assert not node.result(number).failed
    assert node.holds(0, given[0], 301)


def test_a_peer_that_dies_and_comes_back(node: Node) -> None:
    doomed = RealVineyardd(size_bytes=16 << 20)
    peer = node_on(doomed, mover=False)
    acquaint(node, peer, doomed)
    generations = stored(peer, [0], [310])
    number, _ = node.fetch(PEER, [310], [0], generations, [0])
    assert not node.result(number).failed
    doomed.kill()
    number, _ = node.fetch(PEER, [310], [0], generations, [1])
    moved = node.result(number)
    assert moved.failed == {0}
    assert not moved.unproven, "the peer may have it still"
    doomed.close()
    peer.close()
    again = RealVineyardd(size_bytes=16 << 20)
    peer = node_on(again, mover=False)
    acquaint(node, peer, again)
    generations = stored(peer, [1], [311])
    number, given = node.fetch(PEER, [311], [1], generations, [2])
    assert not node.result(number).failed
    assert node.holds(2, given[0], 311)
    node.held.drop_peer(node.jobs_of, PEER)
    again.close()
    peer.close()


def test_a_new_mover_knows_peers_and_resets(node: Node, peer: Node, peer_vineyardd: RealVineyardd) -> None:
    acquaint(node, peer, peer_vineyardd)
    node.held.set_resets(node.jobs_of, RESETS + 5)
    generations = peer.store([0], [320], resets=RESETS + 5)
    peer.seal([0], generations)
    killed = node.held.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    node.wait(lambda: node.held.pid != killed and node.held.ready)
    number, given = node.fetch(PEER, [320], [0], generations, [3])
    assert not node.result(number).failed
    assert node.holds(3, given[0], 320)
    node.held.set_resets(node.jobs_of, RESETS)


def sealed_place(chunk: int) -> tuple[bytes, int]:
    """The bytes of a place that holds a chunk, and its generation."""
    source = Node(slots=1, pages=0, body_bytes=BODY_BYTES, mover=False)
    source.generation = 500
    (generation,) = stored(source, [0], [chunk])
    content = source.place(0).tobytes()
    source.close()
    return content, generation


def test_no_reader_accepts_a_slot_before_all_of_it_came(local: Node, scripted: ScriptedVineyardd) -> None:
    local.held.set_peer(local.jobs_of, PEER, "127.0.0.1", scripted.port, [77])
    content, generation = sealed_place(1)
    (old,) = local.store([5], [2])
    number, (given,) = local.fetch(PEER, [1], [0], [generation], [5])
    request = scripted.next_request()
    assert request.ids == [77]
    # Its old chunk is gone before a byte of the new one can come.
    assert not local.holds(5, old, 2)
    request.announce(len(content))
    half = HEADER_BYTES + BODY_BYTES // 2
    request.send(content[:half])
    local.wait(lambda: local.body(5)[: BODY_BYTES // 2].tobytes() == content[HEADER_BYTES:half])
    assert int(local.pool.words.trailers()[5]) == given
    assert int(local.pool.words.headers()[5]) != given
    request.send(content[half:])
    assert not local.result(number).failed
    assert local.holds(5, given, 1)


def test_a_hung_peer_delays_only_itself(local: Node, scripted: ScriptedVineyardd) -> None:
    local.held.set_peer(local.jobs_of, PEER, "127.0.0.1", scripted.port, [77, 78])
    content, generation = sealed_place(1)
    slow, _ = local.fetch(PEER, [1], [0], [generation], [5])
    request = scripted.next_request()
    (old,) = local.store([6], [3])
    behind, _ = local.fetch(PEER, [1], [1], [generation], [6])
    number, given = local.demote([4], [0], local.store([0], [4]), [local.page(0)])
    assert not local.result(number).failed
    assert local.holds(local.page(0), given[0], 4)
    # What waits behind it is answered at once when it is cancelled, and its slot is as it was.
    local.jobs_of.cancel(JobId(behind))
    assert local.result(behind).failed == {0}
    assert local.holds(6, old, 3)
    assert slow not in local.moved
    request.announce(len(content))
    request.send(content)
    assert not local.result(slow).failed


def test_a_cancelled_fetch_stops_at_its_next_request(local: Node, scripted: ScriptedVineyardd) -> None:
    # No request names a blob twice: three rows of one blob make three requests, of which two are sent ahead.
    local.held.set_peer(local.jobs_of, PEER, "127.0.0.1", scripted.port, [77])
    content, generation = sealed_place(1)
    number, given = local.fetch(PEER, [1, 1, 1], [0, 0, 0], [generation] * 3, [1, 2, 3])
    requests = [scripted.next_request(), scripted.next_request()]
    local.jobs_of.cancel(JobId(number))
    # The mover reads its messages in order: when it answers this one, it has read the other.
    other, _ = local.demote([4], [0], local.store([0], [4]), [local.page(0)])
    local.result(other)
    for request in requests:
        request.announce(len(content))
        request.send(content)
    assert local.result(number).failed == {2}
    assert local.held.traffic[Movement.FETCH].lost == {Loss.CANCELLED: 1}
    assert local.holds(1, given[0], 1)
    assert local.holds(2, given[1], 1)


def test_a_peer_that_never_answers_costs_its_deadline(scripted: ScriptedVineyardd) -> None:
    node = Node(body_bytes=BODY_BYTES, fetch_deadline_s=0.2)
    node.held.set_peer(node.jobs_of, PEER, "127.0.0.1", scripted.port, [77])
    jobs = [node.fetch(PEER, [1], [0], [5], [slot])[0] for slot in range(3)]
    assert [node.result(number).failed for number in jobs] == [{0}] * 3
    assert node.held.traffic[Movement.FETCH].lost == {Loss.UNREACHABLE: 3}
    assert not node.held.restarts
    node.close()
