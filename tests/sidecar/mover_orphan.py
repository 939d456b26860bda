"""A sidecar reduced to its mover: tells the mover's pid, and waits to be killed."""

import os
import select
import signal
import sys
from time import monotonic

from tieredkv.sidecar.keeper import SharedArena
from tieredkv.sidecar.mover.client import MoverProcess
from tieredkv.tiers.arena import Arena

fd = os.memfd_create("arena")
os.ftruncate(fd, 4096)
mover = MoverProcess(SharedArena(fd, Arena(fd, 4096)))
while not mover.ready:
    select.select([mover], [], [], 1.0)
    mover.tick(monotonic())
sys.stdout.write(f"{mover.pid}\n")
sys.stdout.flush()
signal.pause()
