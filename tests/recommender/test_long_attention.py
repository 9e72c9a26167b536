"""Mixers that attend to a long history in parts equal their equations, computed event by event."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_mixers import DIM, LENGTH, assert_mixes, by_head, history, make
from torch import Tensor, nn
from torch.nn.functional import kl_div, mse_loss, silu

from hyenarec.config import ModelConfig
from hyenarec.mixers import MIXERS, gems, ldm
from hyenarec.mixers.auxiliary import with_loss
from hyenarec.mixers.blocks import by_block, lags, softmax_of_seen, with_before
from hyenarec.mixers.ldm import LDMMixer

BLOCK = LENGTH // 4  # 17 events


def read(q: Tensor, keys: Tensor, values: Tensor, counts: Tensor | None = None) -> Tensor:
    """Attention of one query (2, D/2) to keys and values (n, 2, D/2), each weighted by its count if given: (D,)."""
    weights = (torch.einsum("hd,nhd->nh", q, keys) / (DIM / 2) ** 0.5).exp()
    if counts is not None:
        weights = weights * counts[:, None]
    return torch.einsum("nh,nhd->hd", weights / weights.sum(0), values).flatten()


def test_dman_reads_its_segments_and_its_memory() -> None:
    mixer, (x, _) = make("dman"), history()
    assert mixer.segment == BLOCK
    q, k, v = (by_head(y) for y in (mixer.query(x), *mixer.key_value(x).chunk(2, -1)))
    memory, rows = mixer.slots, []
    for t in range(LENGTH):
        segment = t // BLOCK
        if t % BLOCK == 0 and segment >= 2:
            source = torch.cat((memory, x[(segment - 2) * BLOCK : (segment - 1) * BLOCK]))
            memory = (mixer.slot_queries @ mixer.slot_key(source).T).softmax(-1) @ source
        seen = slice(max(0, segment - 1) * BLOCK, t + 1)
        short = read(q[t], k[seen], v[seen])
        long = read(q[t], *(by_head(y) for y in mixer.key_value(memory).chunk(2, -1)))
        gate = mixer.gate(torch.cat((short, long))).sigmoid()
        rows.append(mixer.out(gate * short + (1 - gate) * long))
    assert_mixes(mixer, torch.stack(rows))


def test_dman_learns_its_abstraction_by_what_is_read() -> None:
    """Only the reconstruction loss gives the abstraction a gradient, and it gives nothing else one."""
    mixer, (x, packing) = make("dman"), history()
    mixer(x, packing).sum().mul(0).backward()
    moved = {name for name, p in mixer.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"slot_queries", "slot_key.weight"}
    segments = x[: 4 * BLOCK].view(4, BLOCK, DIM)  # the fifth is not complete
    memory, loss = mixer.slots.detach(), torch.zeros(())
    for segment in segments:
        source = torch.cat((memory, segment))
        after = (mixer.slot_queries @ mixer.slot_key(source).T).softmax(-1) @ source
        q = by_head(mixer.query(segment))
        got, want = (
            torch.stack([read(one, *(by_head(y) for y in mixer.key_value(of).chunk(2, -1))) for one in q])
            for of in (after, source)
        )
        loss = loss + mse_loss(got, want.detach()) / 4
        memory = after.detach()
    want_grad = torch.autograd.grad(loss, mixer.slot_queries)[0]
    torch.testing.assert_close(mixer.slot_queries.grad, want_grad)


def selection(z: Tensor, k: int, m: int) -> Tensor:
    """The selection weights p of a prefix's scores (n,), with the threshold tau by bisection."""
    best = z.topk(min(m, len(z)))
    p = torch.zeros_like(z)
    if len(z) <= k:
        return torch.ones_like(z)
    low, high = best.values.min() - 1, best.values.max()
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (best.values - middle).clamp(0, 1).sum() > k else (low, middle)
    p[best.indices] = (best.values - low).clamp(0, 1)
    return p


def test_sparsek_selects_for_every_prefix() -> None:
    mixer, (x, _) = make("sparsek"), history()
    nn.init.normal_(mixer.score.weight)
    window, k, m = mixer.window, mixer.selected, mixer.kept
    assert (window, k, m) == (BLOCK, BLOCK // 2, BLOCK)
    q, keys, values = (by_head(y) for y in mixer.qkv(x).chunk(3, -1))
    z = (mixer.score(x)[:, 0] + mixer.slope * torch.arange(LENGTH) / window).detach()
    rows, gone = [], torch.zeros(LENGTH, dtype=torch.bool)
    for t in range(LENGTH):
        old = max(0, t + 1 - window)
        p = selection(z[:old], k, m)
        if old > k:
            assert float(p.sum()) == pytest.approx(k)
        assert not p[gone[:old]].any()  # what was dropped stays out
        gone[:old] |= p == 0
        counts = torch.cat((p, torch.ones(t + 1 - old, dtype=p.dtype)))
        rows.append(read(q[t], keys[: t + 1], values[: t + 1], counts))
    assert 0 < int(gone.sum()) < LENGTH
    assert_mixes(mixer, mixer.out(torch.stack(rows)))


def test_sparsek_scores_learn() -> None:
    """The gradient of the selection equals finite differences of the output."""
    mixer, (x, packing) = make("sparsek"), history()
    mixer.requires_grad_(False)
    mixer.score.weight.requires_grad_()
    mixer.slope.requires_grad_()

    def out(weight: Tensor, slope: Tensor) -> Any:
        return torch.func.functional_call(mixer, {"score.weight": weight, "slope": slope}, (x, packing))

    assert torch.autograd.gradcheck(out, (mixer.score.weight, mixer.slope), eps=1e-7, atol=1e-5)


def test_gems_sums_three_streams() -> None:
    mixer, (x, packing) = make("gems"), history()
    nn.init.normal_(mixer.indexer.weight)
    recent, picked = mixer.recent, mixer.picked
    assert (recent, picked) == (BLOCK, BLOCK // 2)
    q, k, v = (by_head(y) for y in mixer.qkv(x).chunk(3, -1))
    first, second, keys = mixer.indexer(x).chunk(3, -1)
    rows, losses = [], []
    for t in range(LENGTH):
        old = max(0, t + 1 - recent)
        row = read(q[t], k[old : t + 1], v[old : t + 1])
        if old:
            index = silu(keys[:old] @ first[t]) + silu(keys[:old] @ second[t])
            best = index.topk(min(picked, old)).indices
            row = row + read(q[t], k[best], v[best])
            want = (torch.einsum("hd,nhd->nh", q[t], k[:old]) / (DIM / 2) ** 0.5).softmax(0).mean(1)
            losses.append(kl_div(index.log_softmax(0), want.detach(), reduction="sum"))
        rows.append(mixer.out(row))
    assert_mixes(mixer, torch.stack(rows) + mixer.lifecycle(x, packing))
    mixer(x, packing).sum().mul(0).backward()
    moved = {name for name, p in mixer.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"indexer.weight", "indexer.bias"}  # only the divergence moves them, and it moves nothing else
    want_grad = torch.autograd.grad(torch.stack(losses).mean(), mixer.indexer.weight)[0]
    torch.testing.assert_close(mixer.indexer.weight.grad, want_grad)


def test_gems_middle_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a single block in the middle, an event before it affects the last output only through the lifecycle."""
    monkeypatch.setattr(gems, "MIDDLE_BLOCKS", 1)
    mixer, (x, packing) = make("gems"), history()
    nn.init.zeros_(mixer.indexer.weight)
    mixer.picked = BLOCK  # all of the middle block
    changed = x.clone()
    for event, seen in ((LENGTH - 1 - 2 * BLOCK, False), (LENGTH - 2 * BLOCK, True), (LENGTH - 1, True)):
        changed[event] += 1
        near = [mixer(one, packing)[-1] - mixer.lifecycle(one, packing)[-1] for one in (x, changed)]
        assert torch.allclose(*near) != seen
        changed = x.clone()


def test_ldm_predicts_from_every_scale() -> None:
    mixer, (x, _) = make("ldm"), history()
    assert mixer.periods == [1, 4, 16]
    value, gate = mixer.value_gate(x).chunk(2, -1)

    def average(series: Tensor, period: int) -> Tensor:
        return torch.stack([series[max(0, t + 1 - period) : t + 1].mean(0) for t in range(LENGTH)])

    rest, mixed = value, torch.zeros_like(value)
    for scale, (period, split) in enumerate([(1, 4), (4, 16), (16, None)]):
        slower = average(rest, split) if split else torch.zeros_like(rest)
        samples = average(rest - slower, period)
        for t in range(LENGTH):
            for j in range(ldm.SAMPLES):
                if t - j * period >= 0:
                    mixed[t] += mixer.weight[scale, j] * samples[t - j * period]
        rest = slower
    assert_mixes(mixer, mixer.out(silu(gate) * mixed))


def test_ldm_reaches_as_far_as_it_says() -> None:
    """In a history longer than its reach, the last output depends on exactly as many events as a state keeps."""
    mixer = MIXERS["ldm"](ModelConfig(mixer="ldm", dim=DIM, max_length=8), 0).double()
    assert isinstance(mixer, LDMMixer) and mixer.periods == [1, 4] and mixer.reach < LENGTH
    x, packing = history()
    x.requires_grad_()
    mixer(x, packing)[-1].square().sum().backward()
    assert x.grad is not None
    counts = (x.grad.abs().amax(1) > 1e-12).nonzero()  # differences of running sums leave rounding errors
    assert LENGTH - int(counts.min()) == mixer.reach


def test_blocks_are_cut_and_joined() -> None:
    x = torch.arange(1, 11)[None]  # (1, 10)
    blocks = by_block(x, 4)
    assert blocks.tolist() == [[[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]]
    assert with_before(blocks, 1).tolist()[0][1] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert with_before(blocks, 2).tolist()[0][1] == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert lags(2, 1, x.device).tolist() == [[2, 1, 0, -1], [3, 2, 1, 0]]


def test_softmax_of_nothing_is_zero() -> None:
    scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    weights = softmax_of_seen(scores, torch.tensor([[True, True], [False, False]]))
    torch.testing.assert_close(weights, torch.stack((torch.tensor([1.0, 2.0]).softmax(0), torch.zeros(2))))
    weights.square().sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


def test_a_loss_travels_with_an_output() -> None:
    x, w = torch.tensor([2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
    y = with_loss(x * 1, w.square())
    assert torch.equal(y, x)
    (5 * y).sum().backward()
    assert float(x.grad) == 5 and float(w.grad) == 6  # type: ignore[arg-type]
