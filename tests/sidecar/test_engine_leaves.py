"""An engine that ends in a process that lives on, as a notebook's does."""

from tieredkv.clock import SystemClock
from tieredkv.protocol import Enabled, Lease, Leased, Welcome
from tieredkv.vllm_client.attaching import WorkerLink

from .engine import Link, hello
from .process import SidecarProcess, wait_until


def test_what_it_had_leased_is_free_again(sidecar: SidecarProcess) -> None:
    worker = WorkerLink(hello("worker", "engine"), lambda: sidecar.socket, SystemClock(), None)
    assert worker.attach(10.0)
    worker.report("")
    worker.watch()
    scheduler = Link(sidecar.socket)
    scheduler.send(hello("scheduler", "engine"))
    scheduler.expect(Welcome)
    assert scheduler.expect(Enabled).reason == ""
    scheduler.send(Lease(10))
    assert len(scheduler.expect(Leased).slots) == 4 * 10
    scheduler.close()
    worker.close()
    wait_until(lambda: sidecar.status()["slots"]["leased"] == 0, "all slots are free again")
    assert not sidecar.status()["engines"]
