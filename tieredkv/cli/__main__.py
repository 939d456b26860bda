"""`python -m tieredkv.cli`: the same as the installed command, for children that we start."""

from tieredkv.cli.main import main

main()
