"""Everything that needs a GPU, in one command: the tests of the triton and cuda backends, then the Legendre operator,
the mixer, and the FFT convolution.

    hyenarec bench gpu [--out benchmarks/results/gpu] [--seconds 1.0] [--skip-tests]
    python -m hyenarec_benchmarks.gpu_suite              # the same where tyro is missing

Contestants on the same data, bfloat16: ours, gated, padded and packed; torch.fft with gates; causal FlashAttention
through scaled_dot_product_attention, and varlen_attn where torch has it; a copy of as many bytes as the gated forward
must move (three tensors read, one written). Each row takes `seconds` a contestant at most, each round is timed by CUDA
events with the caches of the device flushed before it. Errors are against the float64 definition, on the first
sequences of a row. Explicit filters, as long as the sequences, are against torch.fft in float32, in its layout and in
ours. Writes JSON and PNG; prints the table last.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import hyenarec_kernels as hk
from hyenarec_kernels import backends
from hyenarec_kernels.nn import HyenaMixer

from .convolutions import case
from .gpu_measuring import Clock, draw, extra_memory, training
from .measuring import take_turns
from .operator_cpu import fft, fft_sizes, ratio
from .recording import RESULTS, write

TOKENS = (131_072, 1_048_576)
LENGTHS = (50, 200, 512, 1024, 4096, 16384, 65536)
DIMS = (64, 128, 256)
TERMS = 32
FOURIER_LENGTHS = (256, 1024, 4096, 16384)
FOURIER_DIMS = (64, 256)
# 5% quantiles of sequence lengths, from the shortest to the longest, for packed batches.
DRAWN = {
    "ml-1m": (18, 23, 27, 32, 37, 44, 51, 60, 70, 81, 96, 109, 126, 148, 173, 207, 253, 309, 400, 556, 2277),
    "email-eu-core": (1, 1, 4, 8, 17, 29, 41, 57, 80, 103, 132, 160, 212, 263, 323, 414, 532, 701, 1003, 1720, 9782),
}


def contestants(tokens: int, length: int, dim: int) -> tuple[dict[str, Callable[[], Any]], list[Callable[[], Any]]]:
    """Forward passes and training steps by name; also what to call to measure ours alone: forward, training."""
    batch = max(tokens // length, 1)
    x, pre, post = (draw(batch, length, dim) for _ in range(3))
    c, skip = draw(dim, TERMS, dtype=torch.float32), draw(dim, dtype=torch.float32)
    c.data *= length**-0.5
    bounds = torch.arange(0, batch * length + 1, length, device="cuda", dtype=torch.int32)
    flat = [t.detach().reshape(-1, dim).requires_grad_() for t in (x, pre, post)]

    def ours() -> Tensor:
        return hk.legendre_conv(x, c, skip, horizon=length, pre_gate=pre, post_gate=post)

    def packed() -> Tensor:
        return hk.legendre_conv(
            flat[0], c, skip, horizon=length, pre_gate=flat[1], post_gate=flat[2], cu_seqlens=bounds
        )

    basis = torch.randn(TERMS, length, device="cuda") * length**-0.5
    size = fft_sizes(length)[0]

    def through_fft() -> Tensor:
        u = (pre * x).float()
        y = fft(u, (c @ basis).T, size, -2) + skip * u
        return post * y.to(x.dtype)

    query = draw(batch, dim // 64, length, 64)

    def attention() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, query, query, is_causal=True)

    forward: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
        "ours": (ours, [x, c, skip, pre, post]),
        "ours, packed": (packed, [*flat, c, skip]),
        "FFT": (through_fft, [x, c, skip, pre, post]),
        "attention": (attention, [query]),
    }
    varlen = getattr(torch.nn.attention, "varlen", None)
    if varlen is not None:
        heads = draw(batch * length, dim // 64, 64)

        def packed_attention() -> Tensor:
            out: Tensor = varlen.varlen_attn(heads, heads, heads, bounds, bounds, length, length, is_causal=True)
            return out

        forward["attention, packed"] = (packed_attention, [heads])
    moved = torch.empty(2, 2 * batch * length * dim, dtype=torch.bfloat16, device="cuda")
    runs: dict[str, Callable[[], Any]] = {"copy": lambda: moved[0].copy_(moved[1])}
    for name, (run, leaves) in forward.items():
        try:
            runs[f"{name}, fwd+bwd"] = training(run, leaves)
            runs[name] = torch.no_grad()(run)
        except (RuntimeError, TypeError) as error:  # out of memory, or an argument that this torch calls otherwise
            runs.pop(f"{name}, fwd+bwd", None)
            print(f"{name} at {batch} x {length} x {dim}: {str(error).splitlines()[0]}", file=sys.stderr)
    grad = torch.randn_like(x)

    def both() -> tuple[Tensor, ...]:
        out = ours()
        return out, *torch.autograd.grad(out, [x, c, skip, pre, post], grad)

    return runs, [torch.no_grad()(ours), both]


def parity(length: int, dim: int) -> dict[str, float]:
    """The norm-wise error of the output and each gradient, of two sequences, against the reference in float64."""
    length = min(length, 16384)  # a dense float64 FFT of more would leave no time for the rest
    names = ("x", "coefficients", "skip", "pre_gate", "post_gate")
    x, pre, post = (draw(2, length, dim) for _ in range(3))
    c, skip = draw(dim, TERMS, dtype=torch.float32), draw(dim, dtype=torch.float32)
    grad = torch.randn_like(x)

    def answer(leaves: list[Tensor], grad: Tensor) -> dict[str, Tensor]:
        x, c, skip, pre, post = leaves
        out = hk.legendre_conv(x, c, skip, horizon=length, pre_gate=pre, post_gate=post)
        return {"out": out.detach()} | dict(zip(names, torch.autograd.grad(out, leaves, grad), strict=True))

    leaves = [x, c, skip, pre, post]
    got = answer(leaves, grad)
    with backends.use("reference"):
        want = answer([t.detach().double().requires_grad_() for t in leaves], grad.double())
    return {name: float((got[name].double() - value).norm() / value.norm()) for name, value in want.items()}


def drawn_row(name: str, tokens: int, dim: int, clock: Clock, seconds: float) -> dict[str, Any]:
    """Packed sequences of drawn lengths, against as many tokens in sequences of their mean length."""
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.tensor(DRAWN[name], dtype=torch.float64)
    at = torch.rand(tokens // int(quantiles.mean()) * 2, generator=generator, dtype=torch.float64) * (
        len(quantiles) - 1
    )
    below = at.long().clamp(max=len(quantiles) - 2)
    lengths = quantiles[below] + (at - below) * (quantiles[below + 1] - quantiles[below])
    ends = lengths.round().long().cumsum(0)
    ends = ends[ends <= tokens]
    total, mean = int(ends[-1]), int(ends[-1]) // len(ends)
    c, horizon = draw(dim, TERMS, dtype=torch.float32), 1024
    x, pre, post = (draw(total, dim) for _ in range(3))
    bounds = F.pad(ends, (1, 0)).to("cuda", torch.int32)
    even = total // mean * mean
    dense = [t.detach()[:even].view(-1, mean, dim).requires_grad_() for t in (x, pre, post)]

    def packed() -> Tensor:
        return hk.legendre_conv(x, c, horizon=horizon, pre_gate=pre, post_gate=post, cu_seqlens=bounds)

    def padded() -> Tensor:
        return hk.legendre_conv(dense[0], c, horizon=horizon, pre_gate=dense[1], post_gate=dense[2])

    runs = {"packed": training(packed, [x, c, pre, post]), "dense": training(padded, [dense[0], c, *dense[1:]])}
    times = take_turns(runs, seconds * len(runs), 5, clock)
    rates = {key: size / times[key]["median"] for key, size in (("packed", total), ("dense", even))}
    return {
        "drawn": name,
        "dim": dim,
        "sequences": len(ends),
        "times": times,
        "relative": rates["packed"] / rates["dense"],
    }


def mixer_row(length: int, dim: int, clock: Clock, seconds: float) -> dict[str, Any]:
    """A whole mixer, trained under autocast, against attention between the same projections."""
    batch = max(TOKENS[0] // length, 1)
    mixer = HyenaMixer(dim, length, terms=TERMS).cuda()
    projection = torch.nn.Linear(dim, 3 * dim, bias=False).cuda()
    x = draw(batch, length, dim)

    def hyena() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            out: Tensor = mixer(x)
            return out

    def attention() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            q, k, v = (t.unflatten(-1, (-1, 64)).transpose(1, 2) for t in projection(x).chunk(3, -1))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    runs = {
        "mixer": training(hyena, [x, *mixer.parameters()]),
        "attention": training(attention, [x, *projection.parameters()]),
    }
    return {"length": length, "dim": dim, "times": take_turns(runs, seconds * len(runs), 5, clock)}


def fourier_row(length: int, dim: int, clock: Clock, seconds: float) -> dict[str, Any]:
    """Explicit filters of `length` taps, gated: ours in bfloat16 and float32, torch.fft in float32."""
    torch.cuda.empty_cache()
    batch, size = TOKENS[0] // length, fft_sizes(length)[0]
    h, skip = draw(dim, length, dtype=torch.float32), draw(dim, dtype=torch.float32)
    h.data *= length**-0.5

    def ours(x: Tensor, pre: Tensor, post: Tensor, h: Tensor, skip: Tensor) -> Tensor:
        return hk.long_conv(x, h, skip, pre_gate=pre, post_gate=post)

    def through_fft(x: Tensor, pre: Tensor, post: Tensor, h: Tensor, skip: Tensor) -> Tensor:
        last = x.shape[-1] == length  # (B, D, L), otherwise (B, L, D)
        u = pre * x
        y = fft(u, h if last else h.T, size, -1 if last else -2)
        return post * (y + (skip[:, None] if last else skip) * u)

    half, wide, last = (
        [*(draw(*shape, dtype=dtype) for _ in range(3)), h, skip]
        for shape, dtype in (
            ((batch, length, dim), torch.bfloat16),
            ((batch, length, dim), torch.float32),
            ((batch, dim, length), torch.float32),
        )
    )
    runs: dict[str, Callable[[], Any]] = {}
    for name, run, leaves in (
        ("ours", ours, half),
        ("ours, float32", ours, wide),
        ("FFT, (B, L, D)", through_fft, wide),
        ("FFT, (B, D, L)", through_fft, last),
    ):
        forward = partial(run, *leaves)
        runs[name], runs[f"{name}, fwd+bwd"] = torch.no_grad()(forward), training(forward, leaves)
    times = take_turns(runs, seconds, 5, clock)
    first = [t[:2] if t.dim() == 3 else t for t in wide]
    with torch.no_grad():
        got = ours(*first)
        with backends.use("reference"):
            want = ours(*(t.double() for t in first))
    return {
        "length": length,
        "dim": dim,
        "times": times,
        "memory": {name: extra_memory(run) for name, run in runs.items()},
        "error": float((got.double() - want).norm() / want.norm()),
    }


def operator_row(tokens: int, length: int, dim: int, clock: Clock, seconds: float) -> dict[str, Any]:
    torch.cuda.empty_cache()
    runs, ours = contestants(tokens, length, dim)
    row: dict[str, Any] = {"tokens": tokens, "length": length, "dim": dim, "times": take_turns(runs, seconds, 5, clock)}
    row["memory"] = dict(zip(("forward", "training"), map(extra_memory, ours), strict=True))
    if tokens == TOKENS[0]:
        row["error"] = parity(length, dim)
    return row


def table(result: dict[str, Any]) -> list[str]:
    head = (
        "tokens",
        "L",
        "D",
        "fwd ms",
        "of copy",
        "FFT",
        "attention",
        "fwd+bwd ms",
        "FFT",
        "attention",
        "packed",
        "memory",
    )
    lines = ["  ".join(f"{cell:>10}" for cell in head)]
    for row in result["rows"]:
        times, both = row["times"], "ours, fwd+bwd"
        cells = (
            str(row["tokens"]),
            str(row["length"]),
            str(row["dim"]),
            f"{times['ours']['median']:.3f}",
            f"{100 * times['copy']['median'] / times['ours']['median']:.0f}%",
            ratio(times, "FFT", "ours"),
            ratio(times, "attention", "ours"),
            f"{times[both]['median']:.3f}",
            ratio(times, "FFT, fwd+bwd", both),
            ratio(times, "attention, fwd+bwd", both),
            ratio(times, "ours, packed, fwd+bwd", both),
            f"{row['memory']['training']:.2f}x",
        )
        lines.append("  ".join(f"{cell:>10}" for cell in cells))
    lines += [
        f"packed {row['drawn']}, D={row['dim']}: {100 * row['relative']:.0f}% of the dense tokens a second"
        for row in result["drawn"]
    ]
    for row in result["mixer"]:
        times = row["times"]
        lines.append(f"mixer L={row['length']} D={row['dim']}: attention takes {ratio(times, 'attention', 'mixer')}")
    lines += map(fourier_line, result["fourier"])
    worst = max((e, name, row["length"]) for row in result["rows"] for name, e in row.get("error", {}).items())
    lines.append(f"largest error against float64: {worst[0]:.1e}, {worst[1]} at L={worst[2]}")
    return lines


def cases(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Forward, and forward with backward, of every row; the error at a length and width is that of any batch."""
    errors = {(row["length"], row["dim"]): max(row["error"].values()) for row in result["rows"] if "error" in row}
    found = []
    for what in ("", ", fwd+bwd"):
        rivals = {name: name + what for name in ("ours, packed", "FFT", "attention", "attention, packed", "copy")}
        for row in result["rows"]:
            shape = f"{row['tokens'] // row['length']} x {row['length']:,} x {row['dim']}"
            error = errors[row["length"], row["dim"]]
            name = f"Gated Legendre convolution{what}"
            found.append(case(name, shape, row["times"], f"ours{what}", rivals, error, "bfloat16"))
    return found


def fourier_line(row: dict[str, Any]) -> str:
    """Forward and training: milliseconds, and the time and memory that torch takes in its faster layout."""
    cells = [f"explicit filter L={row['length']} D={row['dim']}:"]
    for suffix in ("", ", fwd+bwd"):
        times, memory = row["times"], row["memory"]
        rival = min(
            (f"FFT, ({layout}){suffix}" for layout in ("B, L, D", "B, D, L")), key=lambda name: times[name]["median"]
        )
        wide = f"ours, float32{suffix}"
        cells.append(
            f"{suffix.lstrip(', ') or 'fwd'} {times['ours' + suffix]['median']:.3f} ms, float32 "
            f"{times[wide]['median']:.3f} ms, {rival} takes {ratio(times, rival, wide)} the time and "
            f"{memory[rival] / memory[wide]:.1f}x the memory;"
        )
    return " ".join([*cells, f"error {row['error']:.1e}"])


def plot(result: dict[str, Any], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(DIMS), figsize=(14, 4.5), layout="constrained", sharey=True)
    for axis, dim in zip(axes, DIMS, strict=True):
        rows = [row for row in result["rows"] if row["dim"] == dim and row["tokens"] == TOKENS[-1]]
        for name in ("copy", "ours", "FFT", "attention", "ours, fwd+bwd", "FFT, fwd+bwd", "attention, fwd+bwd"):
            points = [(row["length"], row["times"][name]["median"]) for row in rows if name in row["times"]]
            axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="sequence length", title=f"D={dim}")
    axes[0].set_ylabel(f"milliseconds for {TOKENS[-1]:,} tokens")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="for the contestants of a row together")
    parser.add_argument("--skip-tests", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "error: no CUDA device; every figure of this suite needs one\n")
    for name in ("triton", "cuda"):
        reason = backends.BACKENDS[name].probe()
        if reason is not None:
            parser.exit(2, f"error: backend {name}: {reason}\n")
    tests = 0
    if not arguments.skip_tests:
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "tests/kernels/test_gpu.py", "tests/kernels/test_cuda.py"],
            check=False,
        ).returncode
    torch.manual_seed(0)
    clock, seconds = Clock(), arguments.seconds
    result: dict[str, Any] = {
        "settings": {"tokens": TOKENS, "terms": TERMS, "seconds": seconds},
        "tests_passed": None if arguments.skip_tests else tests == 0,
        "rows": [operator_row(t, length, d, clock, seconds) for t in TOKENS for d in DIMS for length in LENGTHS],
        "drawn": [drawn_row(name, TOKENS[0], d, clock, seconds) for name in DRAWN for d in DIMS],
        "mixer": [mixer_row(length, d, clock, seconds) for d in DIMS for length in (200, 1024, 4096)],
        "fourier": [fourier_row(length, d, clock, seconds) for d in FOURIER_DIMS for length in FOURIER_LENGTHS],
    }
    title = f"gated Legendre convolution, bfloat16, {TERMS} terms"
    device = torch.device("cuda")
    write(arguments.out.with_suffix(".json"), "gpu", title, result | {"cases": cases(result)}, device)
    plot(result, f"{title}, {torch.cuda.get_device_name()}", arguments.out.with_suffix(".png"))
    print("\n".join(table(result)))
    sys.exit(tests)


if __name__ == "__main__":
    main()
