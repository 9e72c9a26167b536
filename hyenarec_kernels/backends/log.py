"""HYENAREC_LOG=1: logs which backend and which algorithm served a call, and why the backends before it did not.

One line per distinct call. Calls are distinct if they differ in operator, device, dtype, layout, taps, groups or last
rows; lengths do not matter. Lines go to the logger "hyenarec_kernels" at level INFO, and to stderr if no logging is set
up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache

import torch

from hyenarec_kernels.backends import settings
from hyenarec_kernels.backends.calls import Call

logger = logging.getLogger("hyenarec_kernels")


@cache  # read once: reading the environment takes as long as the rest of choosing a backend
def enabled() -> bool:
    if settings.value("HYENAREC_LOG", ("0", "1")) != "1":
        return False
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    return True


_reported: set[str] = set()


def report(
    call: Call, backend: str, algorithm: Callable[[Call], str] | None, others: Iterable[tuple[str, str]]
) -> None:
    """Logs that ``backend`` serves the call, unless the same line was logged before.

    ``algorithm`` says how it computes the call; ``others`` are the backends before it, each with the reason why it does
    not serve the call.
    """
    how = f" ({algorithm(call)})" if algorithm else ""
    line = f"{call.function}: {describe(call)}: served by {backend}{how}"
    _say(line + "".join(f"; not by {name}: {reason}" for name, reason in others))


def report_whole(call: Call, backend: str) -> None:
    """Logs that ``backend`` serves several operators in one call."""
    x = call.arguments[0]
    layout = "packed" if x.dim() == 2 else "padded"
    dtype = str(x.dtype).removeprefix("torch.")
    _say(f"{call.function}: {x.device.type}, {dtype}, {layout}: served by {backend}, all operators in one call")


def _say(line: str) -> None:
    if line not in _reported:
        _reported.add(line)
        logger.info(line)


def describe(call: Call) -> str:
    """What distinguishes calls, without lengths: "cpu, float32, padded with lengths, 600 taps, 4 groups, last rows"."""
    schema = getattr(torch.ops.hyenarec, call.operator).default._schema
    given = {argument.name: value for argument, value in zip(schema.arguments, call.arguments, strict=True)}
    x = given["x"]
    words = [x.device.type, str(x.dtype).removeprefix("torch.")]
    if "ends" in given:
        words.append("packed" if x.dim() == 2 else "padded" if given["ends"] is None else "padded with lengths")
    where = {"filter": 1, "weight": 1, "taps": 0}  # the dimension that counts taps
    words += [f"{given[name].shape[dim]} taps" for name, dim in where.items() if name in given]
    words += [f"{given['horizon']} taps"] if "horizon" in given else []
    groups = [given[name].shape[0] for name in ("filter", "coefficients") if name in given]
    words += [f"{count} groups" for count in groups if count < x.shape[-1]]
    if given.get("last_only"):
        words.append("last rows")
    return ", ".join(words)
