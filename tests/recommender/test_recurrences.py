from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyenarec.mixers.recurrences import delta_rule, linear_attention, scan
from hyenarec.mixers.recurrences.decaying_sums import decaying_sums, decaying_sums_step
from hyenarec.mixers.recurrences.delta_rule import chunked_gated_delta_rule, gated_delta_rule
from hyenarec.mixers.recurrences.linear_attention import decay_between
from hyenarec.mixers.recurrences.scan import complex_matrix, linear_scan
from hyenarec.packing import Packing

LENGTHS = [[1], [32], [33], [1, 31, 2, 64, 1], [7, 1100, 40]]  # one chunk, whole chunks, chunks of chunks (32 * 32)


def packing_of(lengths: list[int]) -> Packing:
    return Packing.from_lengths(torch.tensor(lengths))


def bounded_matrix(size: int, channels: int) -> Tensor:
    """A matrix (K, K, D) with norm .97 in each channel, so that its powers fade over some hundred events."""
    matrix = torch.randn(channels, size, size, dtype=torch.float64)
    return (matrix * 0.97 / torch.linalg.matrix_norm(matrix, 2)[:, None, None]).permute(1, 2, 0)


def sequential_scan(matrix: Tensor, x: Tensor, packing: Packing) -> Tensor:
    states: list[Tensor] = []
    for event, first in zip(x, packing.positions == 0, strict=True):
        before = torch.zeros_like(event) if first else states[-1]
        states.append(torch.einsum("ijd,jd->id", matrix, before) + event)
    return torch.stack(states)


def gradients(function: Callable[..., Tensor], inputs: list[Tensor], seed: int = 1) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(seed)))
    return [x.grad for x in leaves]  # type: ignore[misc]


def assert_same(function: Callable[..., Tensor], oracle: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """Asserts equal values and equal gradients of every input."""
    torch.testing.assert_close(function(*inputs), oracle(*inputs), rtol=1e-9, atol=1e-10)
    for got, want in zip(gradients(function, inputs), gradients(oracle, inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_linear_scan_is_the_recurrence(lengths: list[int], size: int) -> None:
    torch.manual_seed(0)
    packing = packing_of(lengths)
    inputs = [bounded_matrix(size, 3), torch.randn(sum(lengths), size, 3, dtype=torch.float64)]
    assert_same(lambda a, x: linear_scan(a, x, packing), lambda a, x: sequential_scan(a, x, packing), inputs)


def test_linear_scan_takes_strided_inputs_and_leaves_them_alone() -> None:
    torch.manual_seed(0)
    packing, matrix = packing_of([40, 24]), bounded_matrix(2, 5)
    x = torch.randn(5, 64, 2, dtype=torch.float64).permute(1, 2, 0)
    before = x.clone()
    torch.testing.assert_close(linear_scan(matrix, x, packing), sequential_scan(matrix, x, packing))
    assert torch.equal(x, before)


def test_linear_scan_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", 3)
    torch.manual_seed(0)
    packing = packing_of([2, 9])
    inputs = [bounded_matrix(2, 2).requires_grad_(), torch.randn(11, 2, 2, dtype=torch.float64, requires_grad=True)]
    assert torch.autograd.gradgradcheck(lambda a, x: linear_scan(a, x, packing), inputs)


def test_complex_matrix_multiplies_complex_numbers() -> None:
    torch.manual_seed(0)
    a, h = torch.randn(2, 4, dtype=torch.complex128)
    got = torch.einsum("ijd,jd->id", complex_matrix(a.real, a.imag), torch.stack((h.real, h.imag)))
    torch.testing.assert_close(torch.complex(*got), a * h)


def test_a_float64_matrix_keeps_the_phase_of_a_float32_scan() -> None:
    torch.manual_seed(0)
    events = 20_000
    angle = torch.rand(8, dtype=torch.float64) + 0.1
    matrix, x, packing = complex_matrix(angle.cos(), angle.sin()), torch.randn(events, 2, 8), packing_of([events])
    exact = linear_scan(matrix, x.double(), packing)

    def error(of: Tensor) -> float:
        got = linear_scan(of, x, packing)
        assert got.dtype == torch.float32
        return float((got - exact).norm() / exact.norm())

    assert error(matrix) < 2e-6
    assert error(matrix.float()) > 1e-4
    leaf = matrix.clone().requires_grad_()
    linear_scan(leaf, x, packing).sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.float64


def test_linear_scan_rounds_no_worse_than_the_recurrence() -> None:
    """Undamped rotation is the hardest case, because nothing is ever forgotten, not even errors."""
    torch.manual_seed(0)
    packing, angle = packing_of([5000]), torch.rand(4) * 3
    matrix, x = complex_matrix(angle.cos(), angle.sin()), torch.randn(5000, 2, 4)
    exact = linear_scan(matrix.double(), x.double(), packing)
    got, sequential = linear_scan(matrix, x, packing), sequential_scan(matrix, x, packing)
    assert got.dtype == torch.float32
    assert float((got - exact).norm()) <= float((sequential - exact).norm())
    assert float((got - exact).norm() / exact.norm()) < 1e-5
    assert linear_scan(matrix.bfloat16(), x.bfloat16(), packing).dtype == torch.float32


def test_the_scan_check_catches_sequences_that_run_into_each_other() -> None:
    torch.manual_seed(0)
    inputs = [bounded_matrix(2, 3), torch.randn(50, 2, 3, dtype=torch.float64)]
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_same(
            lambda a, x: linear_scan(a, x, packing_of([50])),
            lambda a, x: sequential_scan(a, x, packing_of([20, 30])),
            inputs,
        )


def sequential_attention(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    state = torch.zeros(*v.shape[::2], k.shape[-1], v.shape[-1], dtype=v.dtype)  # (B, H, K, V)
    out = []
    for t in range(v.shape[1]):
        state = log_decay[:, t, :, None, None].exp() * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(out, 1)


def heads(length: int, size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, 3, size, dtype=torch.float64)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_linear_attention_is_the_recurrence(length: int) -> None:
    torch.manual_seed(0)
    q, k, v = heads(length, 4), heads(length, 4), heads(length, 5)
    log_decay = -torch.rand(2, length, 3, dtype=torch.float64)
    assert_same(linear_attention.linear_attention, sequential_attention, [q, k, v, log_decay])
    assert_same(
        linear_attention.linear_attention,
        lambda q, k, v: sequential_attention(q, k, v, torch.zeros_like(log_decay)),
        [q, k, v],
    )


def test_linear_attention_shares_what_is_common_to_all_sequences() -> None:
    torch.manual_seed(0)
    p, v, g = heads(70, 4, batch=1), heads(70, 5), -torch.rand(1, 70, 3, dtype=torch.float64)
    got = linear_attention.linear_attention(p, p, v, g)
    torch.testing.assert_close(
        got, sequential_attention(*(x.expand(2, -1, -1, -1) for x in (p, p)), v, g.expand(2, -1, -1))
    )


def test_a_huge_decay_is_a_clean_reset() -> None:
    """With decays of e^-1e9 beside mild ones nothing overflows, and the mild ones keep their digits, in float32 too."""
    torch.manual_seed(0)
    q, k, v = heads(100, 4), heads(100, 4), heads(100, 5)
    log_decay = -torch.rand(2, 100, 3, dtype=torch.float64)
    log_decay[:, ::7] = -1e9
    want = sequential_attention(q, k, v, log_decay)
    got = linear_attention.linear_attention(q.float(), k.float(), v.float(), log_decay.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100])
def test_decaying_sums_are_the_recurrence(length: int) -> None:
    torch.manual_seed(0)
    u, rates = torch.randn(2, length, 3, 5, dtype=torch.float64), -torch.rand(3, dtype=torch.float64)
    elapsed = torch.randint(0, 4, (2, length))
    elapsed[:, ::7] = 10**12  # nothing before this remains

    def sequential(u: Tensor, rates: Tensor) -> Tensor:
        state, rows = torch.zeros(2, 3, 5, dtype=torch.float64), []
        for t in range(length):
            state = decaying_sums_step(u[:, t], rates, elapsed[:, t], state)
            rows.append(state)
        return torch.stack(rows, 1)

    assert_same(lambda *inputs: decaying_sums(*inputs, elapsed)[0], sequential, [u, rates])
    torch.testing.assert_close(decaying_sums(u, rates, elapsed)[1], sequential(u, rates)[:, -1])


def test_decaying_sums_stay_where_a_history_ended() -> None:
    torch.manual_seed(0)
    u, rates, elapsed = torch.randn(1, 20, 3, 5), -torch.rand(3), torch.randint(0, 4, (1, 20))
    padded = torch.cat((u, torch.zeros(1, 30, 3, 5)), 1)
    waited = torch.cat((elapsed, torch.zeros(1, 30, dtype=torch.int64)), 1)
    torch.testing.assert_close(decaying_sums(padded, rates, waited)[1], decaying_sums(u, rates, elapsed)[1])


def test_decaying_sums_keep_their_digits_after_years() -> None:
    """Sums stay precise in float32 with times of 1e9 seconds; a difference of running sums would be off by minutes."""
    torch.manual_seed(0)
    u, rates, elapsed = torch.randn(1, 300, 2, 4), torch.tensor([-0.1, -1e-3]), torch.randint(0, 20, (1, 300))
    elapsed[:, 150] = 10**9
    want = decaying_sums(u.double(), rates.double(), elapsed)[0]
    torch.testing.assert_close(decaying_sums(u, rates, elapsed)[0].double(), want, rtol=1e-4, atol=1e-5)


def test_decay_between_is_the_product_of_the_decays_between() -> None:
    g = -torch.rand(6, dtype=torch.float64)
    decay = decay_between(g)
    for i in range(6):
        for j in range(6):
            want = g[j + 1 : i + 1].sum().exp() if j <= i else torch.zeros((), dtype=torch.float64)
            torch.testing.assert_close(decay[i, j], want)


def sequential_delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
    state = torch.zeros(*v.shape[::2], v.shape[-1], k.shape[-1], dtype=v.dtype)  # (B, H, V, K)
    identity, out = torch.eye(k.shape[-1], dtype=v.dtype), []
    for t in range(v.shape[1]):
        b, a = beta[:, t, :, None, None], log_decay[:, t, :, None, None].exp()
        key = k[:, t, :, :, None]  # (B, H, K, 1)
        state = a * state @ (identity - b * key @ key.mT) + b * v[:, t, :, :, None] @ key.mT
        out.append((state @ q[:, t, :, :, None]).squeeze(-1))
    return torch.stack(out, 1)


def delta_inputs(length: int, batch: int = 2) -> list[Tensor]:
    q, k = (torch.nn.functional.normalize(heads(length, 4, batch), dim=-1) for _ in range(2))
    beta, decay = torch.rand(2, batch, length, 3, dtype=torch.float64)
    return [q, k, heads(length, 5, batch), beta, -decay]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_gated_delta_rule_is_the_recurrence(length: int) -> None:
    torch.manual_seed(0)
    assert_same(chunked_gated_delta_rule, sequential_delta_rule, delta_inputs(length))


def test_gated_delta_rule_of_packed_sequences() -> None:
    torch.manual_seed(0)
    lengths = [5, 1, 70, 33]
    packing, inputs = packing_of(lengths), [x[0] for x in delta_inputs(sum(lengths), batch=1)]
    got = gated_delta_rule(*inputs, packing)  # type: ignore[arg-type]
    want = [
        sequential_delta_rule(*(x[None] for x in part))[0]
        for part in zip(*(x.split(lengths) for x in inputs), strict=True)
    ]
    torch.testing.assert_close(got, torch.cat(want))


def test_a_known_key_is_overwritten() -> None:
    """A second value for a key replaces the first, which distinguishes the delta rule from plain linear attention."""
    key = torch.tensor([1.0, 0.0]).expand(1, 2, 1, 2)
    value = torch.tensor([3.0, 7.0]).view(1, 2, 1, 1)
    one, none = torch.ones(1, 2, 1), torch.zeros(1, 2, 1)
    assert chunked_gated_delta_rule(key, key, value, one, none).flatten().tolist() == [3.0, 7.0]


def test_the_delta_rule_check_catches_a_wrong_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken chunk decays one event late: right for constant decays, so that only uneven ones reveal it."""
    monkeypatch.setattr(delta_rule, "decay_between", lambda g: decay_between(g.roll(1, -1)))
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_same(chunked_gated_delta_rule, sequential_delta_rule, delta_inputs(33))
