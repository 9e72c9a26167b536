"""``python -m benchmarks``: list the suites; ``python -m benchmarks SUITE [options]`` runs one."""

from __future__ import annotations

import sys

from benchmarks import front_door


def main(arguments: list[str]) -> None:
    """Bad input prints one line and exits with code 2."""
    try:
        match arguments:
            case [suite, *options] if not suite.startswith("-"):
                front_door.run(suite, options)
            case _:
                front_door.show()
    except Exception as error:
        if not is_bad_input(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def is_bad_input(error: Exception) -> bool:
    """Whether the error's message is for the user. The recommender's error class is looked up, not imported, because
    some suites run where the recommender (``hyenarec``) cannot be imported."""
    recommender = sys.modules.get("hyenarec.errors")
    kinds = (front_door.NoSuchSuite,) if recommender is None else (front_door.NoSuchSuite, recommender.UserError)
    return isinstance(error, kinds)


if __name__ == "__main__":
    main(sys.argv[1:])
