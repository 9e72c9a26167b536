"""``python -m hyenarec``: the ``hyenarec`` command."""

from hyenarec.cli import main

main()
