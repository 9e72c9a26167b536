"""Where the sequences of a batch lie: turns ``lengths``, ``starts``, ``mask`` or ``cu_seqlens`` into one value,
`Segments`.

Padded ``x`` (B, L, D): row ``b`` holds one sequence, ``x[b, starts[b]:ends[b]]``; None means 0 and L.
Packed ``x`` (T, D): sequence ``s`` is ``x[starts[s]:ends[s]]``; together the sequences cover ``x`` in order.

`Segments.of` and `Segments.of_mask` check the values on the CPU and raise ValueError. On other devices a check would
have to wait for the device. There the kernels clamp the values to the positions of ``x``, and other code that indexes
with them calls `inside` first. In compiled and exported programs two operators do the same whenever the program runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hyenarec_kernels.library import LIBRARY, NAMESPACE, define
from hyenarec_kernels.sharding import beside, prepare
from hyenarec_kernels.tracing import concrete, plain, readable

INDEX_DTYPES = (torch.int32, torch.int64)
MASK_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
Index: TypeAlias = "Tensor | Sequence[int] | np.ndarray[Any, Any]"


class Segments(NamedTuple):
    """Where the sequences of one ``x`` start and end (exclusively), each (B,) or (S,) int32 or int64. None: each row
    from its first position, or to its last."""

    starts: Tensor | None = None
    ends: Tensor | None = None

    @classmethod
    def of(
        cls,
        op: str,
        x: Tensor,
        lengths: Index | None = None,
        starts: Index | None = None,
        cu_seqlens: Index | None = None,
        segments: Segments | None = None,
    ) -> Segments:
        """Makes segments from the arguments of a public call; raises ValueError for arguments that do not fit ``x``.

        ``segments`` that were made before, for the same ``x``, replace the other arguments and are not checked again.
        """
        if segments is not None:
            if lengths is not None or starts is not None or cu_seqlens is not None:
                raise ValueError(f"{op}: segments take the place of lengths, starts and cu_seqlens; give one of them")
            if not isinstance(segments, Segments):
                raise ValueError(f"{op}: segments must be Segments, got {type(segments).__qualname__}")
            return segments
        if x.dim() == 2:
            if cu_seqlens is None or lengths is not None or starts is not None:
                raise ValueError(f"{op}: packed x (T, D) needs cu_seqlens, and takes neither lengths nor starts")
            cu = _index(op, "cu_seqlens", cu_seqlens, x)
            if cu.shape[0] < 1:
                raise ValueError(f"{op}: cu_seqlens must have one entry more than there are sequences, got shape (0,)")
            return _checked(op, x, cu[:-1], cu[1:])  # views: no kernel is launched
        if cu_seqlens is not None:
            raise ValueError(f"{op}: padded x (B, L, D) takes lengths and starts, not cu_seqlens; packed x is (T, D)")
        if lengths is None:
            if starts is not None:
                raise ValueError(f"{op}: starts was given without lengths")
            return cls()
        count = _per_row(op, "lengths", lengths, x)
        if starts is None:
            return _checked(op, x, None, count)
        first = _per_row(op, "starts", starts, x)
        return _checked(op, x, first, first + count)

    @classmethod
    def of_mask(cls, op: str, x: Tensor, mask: Index) -> Segments:
        """Makes segments from a mask (B, L), bool or integers 0 and 1. True or 1 marks real positions, contiguous in
        each row.

        A mask with holes raises ValueError on the CPU; on other devices it fails a device-side assertion.
        """
        mask = _tensor(op, "mask", mask, x)
        if x.dim() != 3 or mask.shape != x.shape[:2] or mask.dtype not in MASK_DTYPES:
            raise ValueError(
                f"{op}: mask must be bool or integers 0 and 1, (B, L) beside x (B, L, D), got {mask.dtype} "
                f"{tuple(mask.shape)} beside {tuple(x.shape)}"
            )
        _check_device(op, "mask", mask, x)
        if plain() and type(mask) is Tensor:
            return cls(*_runs(mask, op))
        return cls(*torch.ops.hyenarec.runs(mask, op))

    def reversed(self, x: Tensor) -> Segments:
        """Where the sequences lie in ``x.flip(-2)``."""
        starts, ends = self
        if ends is None:
            return self
        rows = x.shape[-2]
        first, last = rows - ends, torch.full_like(ends, rows) if starts is None else rows - starts
        return Segments(first, last) if x.dim() == 3 else Segments(first.flip(0), last.flip(0))


def check_segments(op: str, x: Tensor, starts: Tensor | None, ends: Tensor | None) -> None:
    """Raises ValueError unless an operator's ``starts`` and ``ends``, which any caller may have made, hold one index
    per sequence."""
    packed = x.dim() == 2
    if (starts is None or ends is None) if packed else (starts is not None and ends is None):
        raise ValueError(f"{op}: packed x (T, D) needs starts and ends, padded x takes starts beside ends alone")
    if ends is None:
        return
    count = ends.shape[0] if packed and ends.dim() == 1 else x.shape[0]
    for name, given in (("starts", starts), ("ends", ends)):
        if given is None:
            continue
        if given.dim() != 1 or given.shape[0] != count or given.dtype not in INDEX_DTYPES:
            raise ValueError(f"{op}: {name} must be ({count},) int32 or int64, got {tuple(given.shape)} {given.dtype}")
        _check_device(op, name, given, x)
    if packed and count == 0 and x.shape[0] > 0:
        raise ValueError(f"{op}: cu_seqlens must run from 0 to the {x.shape[0]} rows of x, got no sequence")


def within(x: Tensor, starts: Tensor | None, ends: Tensor | None) -> Segments:
    """An operator's ``starts`` and ``ends``, whoever made them, safe for a backend that indexes with them.

    On the CPU, values that do not lie within ``x`` raise ValueError; elsewhere they are clamped, as with `Segments.of`.
    Code that `torch.compile` traces inside a transform of `torch.func` clamps too: it has no values to check.
    """
    if ends is None:
        return Segments(starts, ends)
    first, last = None if starts is None else concrete(starts), concrete(ends)
    rows, packed = x.shape[-2], x.dim() == 2
    if last is None or not readable(last) or (starts is not None and first is None):
        return Segments(*_clamped(starts, ends, rows, packed))
    _check("segments", first, last, rows, packed)
    return Segments(starts, ends)


def inside(x: Tensor, where: Segments) -> Segments:
    """``where``, with values that could not be checked clamped to the positions of ``x``."""
    starts, ends = where
    if ends is None or not plain() or type(ends) is not Tensor or readable(ends):  # done by `_checked`
        return where
    return Segments(*_clamped(starts, ends, x.shape[-2], x.dim() == 2))


def spans(x: Tensor, where: Segments) -> tuple[Tensor, Tensor]:
    """The first row of each sequence in ``x.reshape(-1, D)``, and its number of rows: (S,) and (S,) int64."""
    starts, ends = where
    if x.dim() == 2:
        assert starts is not None and ends is not None
        return starts.long(), ends.long() - starts.long()
    row = beside(x, torch.arange(x.shape[0], device=x.device))
    start = torch.zeros_like(row) if starts is None else starts.long()
    end = torch.full_like(row, x.shape[1]) if ends is None else ends.long()
    return row * x.shape[1] + start, end - start


def last_rows(values: Tensor, first: Tensor, length: Tensor, count: int) -> Tensor:
    """The last ``count`` rows of every sequence, oldest first, with zeros before its start: takes ``values`` (R, D),
    returns (S, count, D)."""
    if values.shape[0] == 0:
        return values.new_zeros(first.shape[0], count, values.shape[1])
    back = beside(values, torch.arange(-count, 0, device=values.device))
    index = ((first + length)[:, None] + back).clamp_(min=0)  # (S, count)
    rows = values.index_select(0, index.flatten()).view(*index.shape, values.shape[1])
    return torch.where((back >= -length[:, None])[..., None], rows, 0)


def zero_padding(x: Tensor, where: Segments) -> Tensor:
    """``x`` with zeros in the padding, whatever it held."""
    starts, ends = where
    if x.dim() == 2 or ends is None:
        return x
    position = beside(x, torch.arange(x.shape[1], device=x.device))
    real = position < ends[:, None]
    if starts is not None:
        real &= position >= starts[:, None]
    return torch.where(real[..., None], x, 0)


def _checked(op: str, x: Tensor, starts: Tensor | None, ends: Tensor) -> Segments:
    """``Segments`` whose values have been checked. Where a check would wait for the device, kernels clamp the values
    later, or in traced code the operator ``segments`` does."""
    rows, packed = x.shape[-2], x.dim() == 2
    if not plain() or type(ends) is not Tensor:
        first, last = torch.ops.hyenarec.segments(starts, ends, rows, packed, op)
        return Segments(None if starts is None else first, last)
    if readable(ends):
        _check(op, starts, ends, rows, packed)
    return Segments(starts, ends)


def _check(op: str, starts: Tensor | None, ends: Tensor, rows: int, packed: bool) -> None:
    # with NumPy, whose calls take a tenth as long: with torch's, the checks of one sequence took 60 us
    last = _array(ends)
    first = np.zeros(len(last), np.int64) if starts is None else _array(starts)
    if not packed:
        wrong = (first < 0) | (last < first) | (last > rows)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{op}: row {row} runs from {first[row]} to {last[row]} (starts to starts + lengths), "
                f"which does not lie within its {rows} positions"
            )
        return
    falls = last < first
    if falls.any():
        at = int(falls.argmax())
        raise ValueError(f"{op}: cu_seqlens must not decrease, but goes from {first[at]} to {last[at]}")
    apart = first[1:] != last[:-1]
    if apart.any():
        at = int(apart.argmax())
        raise ValueError(
            f"{op}: packed sequences must follow each other, but {at} ends at {last[at]} and {at + 1} starts at "
            f"{first[at + 1]}"
        )
    start, end = (first[0], last[-1]) if len(first) else (0, 0)
    if start != 0 or end != rows:
        raise ValueError(f"{op}: cu_seqlens must run from 0 to the {rows} rows of x, got {start} to {end}")


def _array(index: Tensor) -> np.ndarray[Any, Any]:
    # inside a transform of torch.func, `Tensor.numpy` fails: it wraps the tensor first and finds no storage in it
    return np.array(index.tolist(), np.int64) if torch._C._are_functorch_transforms_active() else index.numpy()


def _clamped(starts: Tensor | None, ends: Tensor, rows: int, packed: bool) -> tuple[Tensor | None, Tensor]:
    """``starts`` and ``ends`` unchanged if they are valid; otherwise some segments that lie within ``x``. Does not wait
    for the device."""
    if starts is None:
        return None, ends.clamp(0, rows)
    if not packed:
        first = starts.clamp(0, rows)
        return first, ends.clamp(max=rows).maximum(first)
    if ends.shape[0] == 0:
        return starts.clone(), ends.clone()
    borders = torch.cat([starts[:1] * 0, ends[:-1].clamp(0, rows).cummax(0)[0], torch.full_like(ends[:1], rows)])
    return borders[:-1], borders[1:]


def _segments(starts: Tensor | None, ends: Tensor, rows: int, packed: bool, op: str) -> tuple[Tensor, Tensor]:
    """The operator ``hyenarec::segments``. Returns copies, because an operator may not return its own inputs."""
    if ends.device.type == "cpu":
        _check(op, starts, ends, rows, packed)
        first, last = starts, ends
    else:
        first, last = _clamped(starts, ends, rows, packed)
    return (last.new_empty(0) if first is None else first.clone()), last.clone()


def _runs(mask: Tensor, op: str) -> tuple[Tensor, Tensor]:
    """The operator ``hyenarec::runs``: start and end (B,) int64 of the one run of real positions in each row of a mask
    (B, L)."""
    real = mask != 0
    before = torch.nn.functional.pad(real, (1, 0))[:, :-1]
    runs = (real & ~before).sum(1)
    binary = real == mask  # False for integers other than 0 and 1
    if not readable(mask):
        torch._assert_async((runs <= 1).all(), f"{op}: mask has holes")
        torch._assert_async(binary.all(), f"{op}: mask has values other than 0 and 1")
    elif not bool(binary.all()):
        raise ValueError(f"{op}: mask must hold 0 and 1 alone, got {mask[~binary][0]}")
    elif bool((runs > 1).any()):
        row = int((runs > 1).nonzero()[0])
        raise ValueError(
            f"{op}: the real positions of a mask must be one run a row; row {row} has {int(runs[row])} runs"
        )
    lengths = real.sum(1)
    # The index of the first real position: the number of positions up to which none has been counted.
    starts = (real.cumsum(1) == 0).sum(1)
    starts = torch.where(lengths > 0, starts, 0)
    return starts, starts + lengths


def _tensor(op: str, name: str, given: Index, x: Tensor) -> Tensor:
    if isinstance(given, Tensor):
        return beside(x, given)
    try:
        if isinstance(given, np.ndarray):
            given = np.ascontiguousarray(given)  # torch does not support negative strides
        return beside(x, torch.as_tensor(given, device=x.device))
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{op}: {name} must be a tensor, a list or a NumPy array of integers, got {given!r}") from None


def _index(op: str, name: str, given: Index, x: Tensor) -> Tensor:
    """``given`` as a 1-D index tensor for ``x``; lists and NumPy arrays are converted."""
    index = _tensor(op, name, given, x)
    if not isinstance(given, Tensor) and index.numel() == 0:
        index = index.long()  # an empty list has no dtype of its own
    if index.dim() != 1 or index.dtype not in INDEX_DTYPES:
        raise ValueError(f"{op}: {name} must be a 1-D int32 or int64 tensor, got {tuple(index.shape)} {index.dtype}")
    _check_device(op, name, index, x)
    return index


def _per_row(op: str, name: str, given: Index, x: Tensor) -> Tensor:
    index = _index(op, name, given, x)
    if index.shape[0] != x.shape[0]:
        raise ValueError(f"{op}: {name} must have one entry a row of x, ({x.shape[0]},), got ({index.shape[0]},)")
    return index


def _check_device(op: str, name: str, given: Tensor, x: Tensor) -> None:
    if given.device != x.device:
        raise ValueError(f"{op}: {name} is on {given.device} and x on {x.device}; they must share a device")


def _refuse_vmap(info: object, in_dims: object, *arguments: Any) -> Any:
    raise NotImplementedError(f"{arguments[-1]}: vmap over lengths, starts, cu_seqlens or a mask is not supported")


def _fake_segments(starts: Tensor | None, ends: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return (ends.new_empty(0) if starts is None else starts.new_empty(starts.shape)), ends.new_empty(ends.shape)


def _fake_runs(mask: Tensor, op: str) -> tuple[Tensor, Tensor]:
    first, last = (mask.new_empty(mask.shape[:1], dtype=torch.int64) for _ in range(2))
    return first, last


def _define(name: str, schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    define(name, schema, function)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    torch.library.register_vmap(f"{NAMESPACE}::{name}", _refuse_vmap)
    operator = getattr(torch.ops.hyenarec, name).default

    def autograd(*arguments: Any) -> Any:
        for argument in arguments:
            prepare(argument)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    LIBRARY.impl(name, autograd, "Autograd")  # type: ignore[no-untyped-call]


_define(
    "segments",
    "(Tensor? starts, Tensor ends, SymInt rows, bool packed, str op) -> (Tensor, Tensor)",
    _segments,
    _fake_segments,
)
_define("runs", "(Tensor mask, str op) -> (Tensor, Tensor)", _runs, _fake_runs)
