"""`python -m tieredkv.sidecar.mover`: started by a sidecar, with a socket to it as standard input."""

from tieredkv.sidecar.mover.process import main

main()
