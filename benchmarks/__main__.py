"""``python -m hyenarec_benchmarks``: the same as ``hyenarec bench``."""

import sys

from hyenarec.cli import main

main(["bench", *sys.argv[1:]])
