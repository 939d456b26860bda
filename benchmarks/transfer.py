"""The same as `tieredkv bench transfer`, for running from a checkout: python benchmarks/transfer.py [--json FILE]."""

import sys

from tieredkv.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "transfer"]
    sys.exit(main())
