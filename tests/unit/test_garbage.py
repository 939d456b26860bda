"""Cycles are freed in the pauses, and at no other time."""

import gc
import weakref

from tieredkv.garbage import collect, collect_all, collected_in_pauses


class Ring:
    """Something that only a collection frees."""

    def __init__(self) -> None:
        self.self = self


def dropped() -> "weakref.ref[Ring]":
    return weakref.ref(Ring())


def test_a_cycle_is_freed_in_the_next_pause() -> None:
    with collected_in_pauses():
        assert not gc.isenabled()
        ring = dropped()
        assert ring() is not None
        collect()
        assert ring() is None
    assert gc.isenabled()


def test_what_outlived_a_pause_is_freed_when_all_is_looked_at() -> None:
    with collected_in_pauses():
        old = Ring()
        ring = weakref.ref(old)
        collect()
        del old
        collect()
        assert ring() is not None
        collect_all()
        assert ring() is None
    assert gc.get_freeze_count() == 0


def test_the_inner_of_two_changes_nothing() -> None:
    with collected_in_pauses():
        with collected_in_pauses():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_outside_collection_stays_automatic() -> None:
    collect()
    collect_all()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
