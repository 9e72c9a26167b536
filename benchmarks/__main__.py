"""``python -m benchmarks``: list the suites; ``python -m benchmarks SUITE [options]`` runs one."""

from __future__ import annotations

import sys

from benchmarks import front_door
from hyenarec.errors import UserError


def main(arguments: list[str]) -> None:
    """Bad input prints one line and exits with code 2."""
    try:
        match arguments:
            case [suite, *options] if not suite.startswith("-"):
                front_door.run(suite, options)
            case _:
                front_door.show()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
