from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hyenarec import losses


def inputs(tokens: int = 37, items: int = 53, dim: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).requires_grad_() for shape in ((tokens, dim), (items, dim), (items,))
    )
    return hidden, weight, bias, torch.randint(items, (tokens,), generator=generator)


def reference(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
    parts = [p.detach().double().requires_grad_() for p in (hidden, weight, bias)]
    loss = F.cross_entropy(parts[0] @ parts[1].T + parts[2], targets)
    return loss.detach(), list(torch.autograd.grad(loss, parts))


@pytest.mark.parametrize(
    ("chunk", "dim"),
    [(1, 1), (1, 8), (53 * 10, 8), (1 << 20, 8)],
    ids=["one token", "as many tokens as channels", "ten tokens", "all"],
)
def test_full_cross_entropy_and_gradients(chunk: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_SCORES", chunk)
    hidden, weight, bias, targets = inputs(dim=dim)
    loss = losses.full_cross_entropy(hidden, weight, bias, targets)
    gradients = torch.autograd.grad(3 * loss, (hidden, weight, bias))  # the factor reveals an ignored incoming gradient
    expected, expected_gradients = reference(hidden, weight, bias, targets)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert (got - 3 * want).norm() <= 1e-5 * (3 * want).norm()


@pytest.mark.parametrize(("items", "tokens"), [(500_000, [64, 64, 2]), (3_416, [130])])
def test_a_chunk_is_worth_its_pass_over_the_catalogue(
    items: int, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk has enough tokens to be worth its pass over the catalogue. At 500,000 items, the memory for scores alone
    would give chunks of four tokens, each of which would read all 500,000 rows."""
    found, softmax = [], losses._softmax
    monkeypatch.setattr(losses, "_softmax", lambda s, out: found.append(len(s)) or softmax(s, out))
    hidden, weight = torch.zeros(130, 64), torch.zeros(items, 64)
    losses.full_cross_entropy(hidden, weight, torch.zeros(items), torch.zeros(130, dtype=torch.int64))
    assert found == tokens


def test_full_cross_entropy_survives_large_scores() -> None:
    hidden, weight, bias, targets = inputs()
    hidden = (hidden.detach() * 300).requires_grad_()
    loss = losses.full_cross_entropy(hidden, weight, bias, targets)
    torch.testing.assert_close(loss.double(), reference(hidden, weight, bias, targets)[0], rtol=1e-5, atol=0)


def test_full_cross_entropy_under_autocast_stays_near_float32() -> None:
    hidden, weight, bias, targets = inputs(tokens=500)
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses.full_cross_entropy(hidden, weight, bias, targets)
    expected, gradients = reference(hidden, weight, bias, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=2e-3, atol=0)
    got = torch.autograd.grad(loss, weight)[0]
    assert got.dtype == torch.float32
    assert (got - gradients[1]).norm() <= 2e-2 * gradients[1].norm()


def test_full_cross_entropy_never_holds_the_score_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_SCORES", 53 * 4)
    hidden, weight, bias, targets = inputs()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        losses.full_cross_entropy(hidden, weight, bias, targets).backward()
    assert largest <= max(53 * 8, 37 * 8)  # at most as large as weight or hidden; the score matrix is 37 * 53
    with Watch():
        F.cross_entropy(hidden @ weight.T + bias, targets)
    assert largest == 37 * 53  # the watch does notice a whole matrix


def test_sampled_softmax_estimates_the_full_normaliser_without_bias() -> None:
    hidden, weight, bias, targets = inputs(tokens=6, items=20)
    q = torch.rand(20, generator=torch.Generator().manual_seed(1)) + 0.05
    q /= q.sum()
    torch.manual_seed(0)
    negatives = torch.multinomial(q, 400_000, replacement=True)
    loss = losses.sampled_softmax(hidden, weight, bias, targets, negatives, q.log())
    full = F.cross_entropy(hidden @ weight.T + bias, targets)
    torch.testing.assert_close(loss, full, rtol=5e-3, atol=0)
    uncorrected = losses.sampled_softmax(
        hidden, weight, bias, targets, negatives, torch.full((20,), -20.0).log1p().nan_to_num()
    )
    assert (uncorrected - full).abs() > 0.1 * full  # without logQ the estimate is far off


def test_sampled_softmax_drops_accidental_hits() -> None:
    hidden, weight, bias, targets = inputs(tokens=4, items=20)
    hits = losses.sampled_softmax(hidden[:1], weight, bias, targets[:1], targets[:1].repeat(5), torch.zeros(20))
    torch.testing.assert_close(hits, torch.zeros(()))


@pytest.mark.parametrize("chunk", [1, 4 * 5, 1 << 20], ids=["as many tokens as channels", "five tokens", "all"])
def test_sampled_softmax_and_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_SCORES", chunk)
    *parts, targets = inputs(tokens=37, items=9, dim=3)
    negatives = torch.tensor([0, 3, 3, 8])
    log_q = torch.rand(9, generator=torch.Generator().manual_seed(2)).log()
    loss = losses.sampled_softmax(*parts, targets, negatives, log_q)
    gradients = torch.autograd.grad(3 * loss, parts)  # the factor reveals an ignored incoming gradient
    expected, expected_gradients = sampled_reference(*parts, targets, negatives, log_q)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert got.dtype == torch.float32
        assert (got - 3 * want).norm() <= 1e-5 * (3 * want).norm()


def sampled_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, negatives: Tensor, log_q: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The loss and gradients from all scores of tokens and negatives at once, in float64."""
    parts = [p.detach().double().requires_grad_() for p in (hidden, weight, bias)]
    scores = parts[0] @ parts[1].T + parts[2]
    negative = scores[:, negatives] - (log_q.double()[negatives] + math.log(len(negatives)))
    negative = negative.masked_fill(targets[:, None] == negatives, float("-inf"))
    own = scores.gather(1, targets[:, None])
    loss = (torch.logsumexp(torch.cat((own, negative), 1), 1) - own[:, 0]).mean()
    return loss.detach(), list(torch.autograd.grad(loss, parts))


def test_sampled_softmax_survives_large_scores_and_tokens_without_negatives() -> None:
    *parts, _ = inputs(tokens=6, items=9, dim=3)
    parts[0] = (parts[0].detach() * 300).requires_grad_()
    targets, negatives, log_q = torch.tensor([4, 4, 0, 1, 2, 3]), torch.tensor([4, 4]), torch.full((9,), -2.0)
    loss = losses.sampled_softmax(*parts, targets, negatives, log_q)
    expected, expected_gradients = sampled_reference(*parts, targets, negatives, log_q)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    for got, want in zip(torch.autograd.grad(loss, parts), expected_gradients, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_sampled_softmax_under_autocast_stays_near_float32() -> None:
    *parts, targets = inputs(tokens=500)
    negatives, log_q = torch.arange(0, 53, 2), torch.full((53,), 1 / 53).log()
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses.sampled_softmax(*parts, targets, negatives, log_q)
    expected, gradients = sampled_reference(*parts, targets, negatives, log_q)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-3, atol=0)
    for got, want in zip(torch.autograd.grad(loss, parts), gradients, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() <= 2e-2 * want.norm()
