"""Starts Python processes for tests. Each is forked from a process that has imported torch and done nothing else.

A fresh interpreter takes 2 s to import torch, and most of the tests that start one do little more. What is chosen once
per process, such as the instruction set, is chosen anew in each forked process. Tests of what an import brings with it,
of signals and of closed streams start a real interpreter instead.
"""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(["torch"])


def start(*arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, out: Path) -> BaseProcess:
    """Starts ``python ARGUMENTS``: ``-c CODE``, ``-m MODULE`` or a file.

    Its stdout and stderr go to the files ``out/1`` and ``out/2``.
    """
    environment = dict(os.environ if env is None else env)
    process = FORKED.Process(target=_run, args=([*map(str, arguments)], environment, cwd or Path.cwd(), out))
    process.start()
    return process


def python(
    *arguments: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 300.0
) -> CompletedProcess[str]:
    """Runs ``python ARGUMENTS`` as :func:`start` does, waits for it, and returns its exit code and what it printed.

    Raises :class:`subprocess.TimeoutExpired` after ``timeout`` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        process = start(*arguments, env=env, cwd=cwd, out=out)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise TimeoutExpired([*map(str, arguments)], timeout)
        printed = [(out / stream).read_text() if (out / stream).exists() else "" for stream in ("1", "2")]
        return CompletedProcess([*arguments], process.exitcode, *printed)


def _run(arguments: list[str], environment: dict[str, str], cwd: Path, out: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    out.mkdir(exist_ok=True)
    for stream in (1, 2):
        os.dup2(os.open(out / str(stream), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    encoding = environment.get("PYTHONIOENCODING")
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding=encoding), os.fdopen(2, "w", buffering=1, encoding=encoding)
    sys.path[:0] = [cwd.as_posix(), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    first, *rest = arguments
    if first == "-c":
        code, *rest = rest
        sys.argv = ["-c", *rest]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        module, *rest = rest
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")
