"""Random operator calls in every layout, with the oracle's answers. The operator tests and their negatives run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import operator_oracle as oracle
import torch
from torch import Tensor

import hyenarec_kernels as hk

OPERATORS = ("short_conv", "long_conv", "legendre_conv")
LAYOUTS = ("full", "right", "left", "middle", "packed")
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# The outputs of each sequence, and the gradients: a list over sequences for rows, one array for a parameter.
Answer = tuple[list[np.ndarray], dict[str, Any]]
RAGGED = (7, 0, 1, 13, 2)  # one sequence is empty, one has length 1


@dataclass
class Layout:
    """Puts the rows of sequences into a tensor, and takes them out again."""

    kind: str
    lengths: Sequence[int]
    columns: int = 0
    starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        longest = max(self.lengths, default=0)
        self.columns = longest if self.kind == "full" else longest + 3
        slack = [self.columns - n for n in self.lengths]
        self.starts = {"left": slack, "middle": [s // 2 for s in slack]}.get(self.kind, [0] * len(slack))

    def place(self, rows: Sequence[np.ndarray], dtype: torch.dtype, fill: float) -> Tensor:
        """Puts the rows (n_i, D) of each sequence into (B, L, D), padded with ``fill``, or into (T, D) if packed."""
        parts = [torch.as_tensor(r).to(dtype) for r in rows]
        if self.kind == "packed":
            return torch.cat(parts)
        out = torch.full((len(parts), self.columns, parts[0].shape[1]), fill, dtype=dtype)
        for b, part in enumerate(parts):
            out[b, self.starts[b] : self.starts[b] + len(part)] = part
        return out

    def take(self, values: Tensor) -> list[np.ndarray]:
        """The real rows of each sequence; fails if the padding holds anything but zero."""
        v = values.detach().double().numpy()
        if self.kind == "packed":
            return np.split(v, np.cumsum(self.lengths)[:-1])
        spans = [(s, s + n) for s, n in zip(self.starts, self.lengths, strict=True)]
        for b, (start, end) in enumerate(spans):
            assert not v[b, :start].any() and not v[b, end:].any(), f"row {b} has values in its padding"
        return [v[b, start:end] for b, (start, end) in enumerate(spans)]

    def arguments(self, index_dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
        lengths = torch.tensor(self.lengths, dtype=index_dtype)
        if self.kind == "packed":
            return {"cu_seqlens": torch.nn.functional.pad(lengths.cumsum(0, dtype=index_dtype), (1, 0))}
        if self.kind == "full":
            return {}
        if self.kind == "right":
            return {"lengths": lengths}
        return {"lengths": lengths, "starts": torch.tensor(self.starts, dtype=index_dtype)}


@dataclass
class Case:
    """One call: rows for each sequence, parameters, options. All are float64 values that a run's dtype can hold."""

    operator: str
    lengths: Sequence[int]
    rows: dict[str, list[np.ndarray]]  # x, and where they exist the gates and the output's gradient
    parameters: dict[str, np.ndarray]
    options: dict[str, Any]
    dim: int
    last_only: bool = False

    @classmethod
    def random(
        cls,
        operator: str,
        lengths: Sequence[int] = RAGGED,
        *,
        dim: int = 6,
        groups: int = 3,
        taps: int = 9,
        terms: int = 4,
        dtype: torch.dtype = torch.float64,
        last_only: bool = False,
        seed: int = 0,
    ) -> Case:
        rng = np.random.default_rng(seed)

        def draw(*shape: int) -> np.ndarray:
            return torch.as_tensor(rng.standard_normal(shape)).to(dtype).double().numpy()  # dtype can hold them

        options: dict[str, Any] = {}
        if operator == "short_conv":
            parameters = {"weight": draw(dim, taps), "bias": draw(dim)}
            options["activation"] = "silu"
        elif operator == "long_conv":
            parameters = {"filter": draw(groups, taps), "skip": draw(dim)}
        else:
            parameters = {"coefficients": draw(groups, terms), "decay": abs(draw(groups)), "skip": draw(dim)}
            options["horizon"] = taps
        outputs = [min(n, 1) if last_only else n for n in lengths]
        rows = {"x": [draw(n, dim) for n in lengths], "grad": [draw(n, dim) for n in outputs]}
        if operator != "short_conv":
            rows["pre_gate"] = [draw(n, dim) for n in lengths]
            rows["post_gate"] = [draw(n, dim) for n in outputs]
            if last_only:
                options["last_only"] = True
        return cls(operator, lengths, rows, parameters, options, dim, last_only)

    # ---- the oracle's answer -------------------------------------------------------------------------------------

    def taps(self) -> np.ndarray:
        """The taps (D, K) of a long operator, one filter per channel."""
        if self.operator == "long_conv":
            h = self.parameters["filter"]
        else:
            p = self.parameters
            h = oracle.legendre_filter(p["coefficients"], self.options["horizon"], p["decay"])
        return np.repeat(h, self.dim // len(h), 0)

    def expected(self) -> Answer:
        """Each sequence's outputs, and the gradients: a list over sequences for rows, one array for a parameter."""
        if self.operator == "short_conv":
            return self._expected_short()
        h, skip = self.taps(), self.parameters["skip"]
        outputs: list[np.ndarray] = []
        gradients: dict[str, Any] = {"x": [], "pre_gate": [], "post_gate": []}
        dh, dskip = np.zeros_like(h), np.zeros_like(skip)
        for x, pre, post, do in zip(*(self.rows[k] for k in ("x", "pre_gate", "post_gate", "grad")), strict=True):
            post, do = (self._at_end(v, len(x)) for v in (post, do))
            shown = slice(len(x) - 1, None) if self.last_only and len(x) else slice(None)
            outputs.append(oracle.long_conv(x, h, skip, pre, post)[shown])
            g = oracle.long_conv_gradients(do, x, h, skip, pre, post)
            gradients["x"].append(g["x"])
            gradients["pre_gate"].append(g["pre_gate"])
            gradients["post_gate"].append(g["post_gate"][shown])
            dh, dskip = dh + g["filter"], dskip + g["skip"]
        groups = len(self.parameters["filter" if self.operator == "long_conv" else "coefficients"])
        dh = dh.reshape(groups, -1, dh.shape[1]).sum(1)
        gradients["skip"] = dskip
        if self.operator == "long_conv":
            gradients["filter"] = dh
        else:
            p = self.parameters
            gradients |= oracle.legendre_filter_gradients(dh, p["coefficients"], self.options["horizon"], p["decay"])
        return outputs, gradients

    def _expected_short(self) -> Answer:
        p, silu = self.parameters, self.options["activation"] == "silu"
        outputs = [oracle.short_conv(x, p["weight"], p["bias"], silu) for x in self.rows["x"]]
        parts = [
            oracle.short_conv_gradients(do, x, p["weight"], p["bias"], silu)
            for x, do in zip(self.rows["x"], self.rows["grad"], strict=True)
        ]
        summed = {name: sum(part[name] for part in parts) for name in p}
        return outputs, {"x": [part["x"] for part in parts], **summed}

    def _at_end(self, rows: np.ndarray, length: int) -> np.ndarray:
        """With ``last_only``, puts the one row at the end of (length, D), with zeros before it."""
        return np.concatenate([np.zeros((length - len(rows), self.dim)), rows])

    # ---- the package's answer ------------------------------------------------------------------------------------

    def run(
        self,
        layout: str,
        dtype: torch.dtype = torch.float64,
        *,
        function: Callable[..., Tensor] | None = None,
        fill: float = float("nan"),
        strided: bool = False,
        parameter_dtype: torch.dtype | None = None,
        index_dtype: torch.dtype = torch.int64,
    ) -> Answer:
        """What ``function`` (by default the public operator) gives in one layout, in the form of :meth:`expected`.
        ``fill`` is in all padding."""
        where = Layout(layout, self.lengths)
        out_rows = Layout("packed", [1] * len(self.lengths)) if self.last_only else where

        def tensor(name: str) -> Tensor:
            output = name in ("post_gate", "grad")
            rows = self.rows[name]
            if output and self.last_only:  # each sequence has one row, even an empty one
                rows = [r if len(r) else np.full((1, self.dim), fill) for r in rows]
            t = (out_rows if output else where).place(rows, dtype, fill)
            return stride(t) if strided else t

        inputs = {name: tensor(name).requires_grad_() for name in self.rows if name != "grad"}
        parameters = {
            name: torch.as_tensor(value).to(parameter_dtype or dtype).requires_grad_()
            for name, value in self.parameters.items()
        }
        call = function or getattr(hk, self.operator)
        out = call(**inputs, **parameters, **self.options, **where.arguments(index_dtype))
        assert out.dtype == dtype and out.is_contiguous()
        leaves = {**inputs, **parameters}
        found = dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), tensor("grad")), strict=True))
        gradients: dict[str, Any] = {}
        for name, gradient in found.items():
            assert gradient.dtype == leaves[name].dtype and gradient.shape == leaves[name].shape
            if name in parameters:
                gradients[name] = gradient.double().numpy()
            else:
                gradients[name] = self._rows(gradient, out_rows if name == "post_gate" else where)
        return self._rows(out, out_rows), gradients

    def _rows(self, values: Tensor, layout: Layout) -> list[np.ndarray]:
        rows = layout.take(values)
        if self.last_only and layout.lengths != self.lengths:  # the one row of an empty sequence must be 0
            for r, n in zip(rows, self.lengths, strict=True):
                assert n or not r.any()
            return [r[: min(n, 1)] for r, n in zip(rows, self.lengths, strict=True)]
        return rows


def on_device(operator: str, device: str = "cuda") -> Callable[..., Tensor]:
    """The operator on ``device`` for a case's CPU tensors; autograd moves the inputs there and their gradients back."""

    def call(**arguments: object) -> Tensor:
        moved = {name: a.to(device) if isinstance(a, Tensor) else a for name, a in arguments.items()}
        out: Tensor = getattr(hk, operator)(**moved)
        return out.cpu()

    return call


def stride(t: Tensor) -> Tensor:
    """The same values with at least twice the strides, and NaN in the gaps."""
    wide = torch.full([2 * n for n in t.shape], float("nan"), dtype=t.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in t.shape)]
    return view.copy_(t)


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Norm-wise relative error; absolute, in units of 1e-3, if the expected norm is below 1e-3."""
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-3)) if want.size else 0.0


def errors(
    got: tuple[list[np.ndarray], dict[str, Any]], want: tuple[list[np.ndarray], dict[str, Any]]
) -> dict[str, float]:
    """The largest error of the output and of each gradient, over sequences or for a parameter as a whole."""

    def worst(g: Any, w: Any) -> float:
        return (
            max((error(a, b) for a, b in zip(g, w, strict=True)), default=0.0) if isinstance(w, list) else error(g, w)
        )

    assert got[1].keys() == want[1].keys()
    return {"output": worst(got[0], want[0])} | {name: worst(got[1][name], want[1][name]) for name in want[1]}


def assert_close(got: Answer, want: Answer, tolerance: float) -> None:
    wrong = {name: e for name, e in errors(got, want).items() if not e <= tolerance}
    assert not wrong, f"norm-wise errors above {tolerance}: {wrong}"
