"""Each mixer equals its own equations, computed event by event; and how its cost grows with the history's length."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, normalize, scaled_dot_product_attention, silu, softplus
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hyenarec.config import AttentionConfig, ModelConfig
from hyenarec.errors import UserError
from hyenarec.mixers import MIXERS, Mixer, elastic, hstu, hytrec
from hyenarec.mixers.hytrec import DecayingMemory
from hyenarec.mixers.recent import RecentAttention
from hyenarec.mixers.recurrences.delta_rule import chunked_gated_delta_rule
from hyenarec.packing import Packing

DIM, LENGTH = 8, 70  # LENGTH: more than two chunks


def make(name: str) -> Any:
    torch.manual_seed(0)
    return MIXERS[name](ModelConfig(mixer=name, dim=DIM, max_length=LENGTH, dropout=0.0), 0).double()


def history() -> tuple[Tensor, Packing]:
    torch.manual_seed(1)
    return torch.randn(LENGTH, DIM).double(), Packing.from_lengths(torch.tensor([LENGTH]))


def assert_mixes(mixer: nn.Module, want: Tensor, **options: Any) -> None:
    x, packing = history()
    torch.testing.assert_close(mixer(x, packing, **options), want, rtol=1e-9, atol=1e-10)


def by_head(x: Tensor) -> Tensor:
    """Reshapes (L, D) to (L, 2, D/2), for mixers with two heads."""
    return x.view(len(x), 2, -1)


def test_lru_is_its_complex_recurrence() -> None:
    mixer, (x, _) = make("lru"), history()
    eigenvalues = torch.exp(torch.complex(-mixer.nu.exp(), mixer.theta.exp()))
    assert bool((eigenvalues.abs() > 0.79).all() and (eigenvalues.abs() < 0.991).all())
    torch.testing.assert_close(mixer.gamma.exp(), (1 - eigenvalues.abs() ** 2).sqrt(), rtol=1e-5, atol=1e-6)
    into, out = (mixer.input.weight.chunk(2), mixer.out.weight.chunk(2, 1))
    h, rows = torch.zeros(2 * DIM, dtype=torch.complex128), []
    for event in x:
        driven = torch.complex(into[0] @ event, into[1] @ event) + torch.complex(*mixer.input.bias.chunk(2))
        h = eigenvalues * h + mixer.gamma.exp() * driven
        rows.append((torch.complex(out[0], -out[1]) @ h).real + mixer.out.bias)
    assert_mixes(mixer, torch.stack(rows))


def test_linoss_steps_its_oscillators() -> None:
    mixer, (x, _) = make("linoss"), history()
    dt, stiffness = mixer.time_step.sigmoid(), mixer.stiffness
    speed = position = torch.zeros(DIM).double()
    rows = []
    for event in x:
        speed = speed + dt * (mixer.input(event) - stiffness * position)
        position = position + dt * speed
        value, gate = mixer.glu(gelu(mixer.output(position) + mixer.skip * event)).chunk(2)
        rows.append(value * gate.sigmoid())
    assert_mixes(mixer, torch.stack(rows))


def test_linoss_never_blows_up() -> None:
    """Outputs stay finite, because the mixer bounds the learned stiffness: dt^2 A > 4 would grow without end."""
    mixer = make("linoss").float()
    nn.init.constant_(mixer.stiffness, 50.0)
    nn.init.constant_(mixer.time_step, 5.0)
    packing = Packing.from_lengths(torch.tensor([5000]))
    assert mixer(torch.randn(5000, DIM), packing).isfinite().all()


@pytest.mark.parametrize(("name", "seen"), [("hydra", lambda s, t: s <= t), ("hydra_bidirectional", lambda s, t: True)])
def test_hydra_sums_what_it_sees(name: str, seen: Callable[[int, int], bool]) -> None:
    mixer, (x, _) = make(name), history()
    q, k, v = mixer.qkv(x).chunk(3, -1)
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    rows = [q[t] * torch.stack([k[s] * v[s] for s in range(LENGTH) if seen(s, t)]).sum(0) for t in range(LENGTH)]
    assert_mixes(mixer, mixer.out(torch.stack(rows)))


def test_bert4rec_is_attention_to_everything() -> None:
    mixer, (x, _) = make("bert4rec"), history()
    q, k, v = (by_head(y).transpose(0, 1) for y in mixer.qkv(x).chunk(3, -1))
    weights = (q @ k.mT / (DIM / 2) ** 0.5).softmax(-1)
    assert_mixes(mixer, mixer.out((weights @ v).transpose(0, 1).flatten(1)))


def test_grela_is_rotary_linear_attention_of_the_past() -> None:
    mixer, (x, _) = make("grela"), history()
    gate, v = mixer.gate_value(x).chunk(2, -1)
    q, k = (torch.where(y > 0, y + 1, y.exp()) for y in mixer.query_key(v).chunk(2, -1))

    def turn(y: Tensor, t: int) -> Tensor:
        pairs = torch.view_as_complex(y.reshape(-1, 2))
        angle = t * 10_000.0 ** -(torch.arange(DIM // 2) / (DIM // 2)).double()
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten()

    rows = []
    for t in range(LENGTH):
        row = torch.zeros(2, DIM // 2).double()
        for head in range(2):
            part = slice(head * DIM // 2, (head + 1) * DIM // 2)
            total = sum(turn(q[t], t)[part] @ turn(k[s], s)[part] * v[s, part] for s in range(t + 1))
            row[head] = total / sum(q[t, part] @ k[s, part] for s in range(t + 1))
        near = sum(mixer.taps[:, lag] * v[t - lag] for lag in range(min(4, t + 1))) + mixer.taps_bias
        rows.append(silu(gate[t]) * (row.flatten() + near))
    # The mixer's rotation angles come from a float32 table.
    torch.testing.assert_close(mixer(*history()), mixer.out(torch.stack(rows)), rtol=1e-4, atol=1e-5)


def test_elastic_gathers_and_dispatches() -> None:
    mixer, (x, _) = make("elastic"), history()
    q, k, v = (by_head(y) for y in mixer.qkv(x).chunk(3, -1))
    scale, rows = (DIM / 2) ** 0.5, []
    for t in range(LENGTH):
        parts = []
        for head in range(2):
            interests = mixer.interests[head]  # (J, D/2)
            assert interests.shape[0] == elastic.INTERESTS
            scores = scale * normalize(interests, dim=-1) @ normalize(k[: t + 1, head], dim=-1).T  # (J, t+1)
            gathered = scores.softmax(-1) @ v[: t + 1, head]  # (J, D/2)
            parts.append((interests @ q[t, head] / scale).softmax(-1) @ gathered)
        rows.append(torch.cat(parts))
    assert_mixes(mixer, mixer.out(torch.stack(rows)))


def times() -> Tensor:
    """Times of events, some equal and some years apart."""
    generator = torch.Generator().manual_seed(2)
    steps = torch.tensor([0, 1, 3600, 90_000, 40_000_000])
    return 1_700_000_000 + steps[torch.randint(5, (LENGTH,), generator=generator)].cumsum(0)


@pytest.mark.parametrize("when", [None, times()], ids=["positions", "timestamps"])
def test_fuxi_linear_is_its_three_weight_matrices(when: Tensor | None) -> None:
    mixer, (x, packing) = make("fuxi_linear"), history()
    time = packing.positions if when is None else when
    past = torch.ones(LENGTH, LENGTH).tril().double()
    lag = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).double()
    gate, qkv = silu(mixer.gate_qkv(x)).chunk(2, -1)
    q, k, v = (by_head(y) for y in qkv.chunk(3, -1))
    rates = softplus(mixer.retention_rate).cumsum(0)
    retention = [((q[:, h] @ k[:, h].T) * (-rates[h] * lag.clamp_min(0)).exp() * past) @ v[:, h] for h in range(2)]
    values = mixer.temporal_value(x).chunk(8, -1)  # a sine and a cosine head for each of 4 periods
    difference = time[:, None] - time
    temporal = []
    for p, period in enumerate([1, 16, 256, 4096]):
        turns = 2 * math.pi * difference.double() / period
        phase = 2 * math.pi * (difference % period).double() / period
        decay = mixer.temporal_decay[p].sigmoid() ** turns.clamp_min(0) * past
        temporal += [(phase.sin() * decay) @ values[2 * p], (phase.cos() * decay) @ values[2 * p + 1]]
    u, p = mixer.positional_value(x), mixer.positions
    positional = mixer.positional_mix[0] * ((p @ p.T / 16) * past) @ u + mixer.positional_mix[1] * u
    channels = [torch.cat(retention, -1), torch.cat(temporal, -1), positional]
    want = mixer.out(gate * torch.cat([layer_norm(channel, (DIM,)) for channel in channels], -1))
    torch.testing.assert_close(mixer(x, packing, timestamps=when), want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("when", [None, times()], ids=["positions", "timestamps"])
def test_hstu_is_its_weight_matrix(when: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hstu, "ROWS", 16)
    mixer, (x, packing) = make("hstu"), history()
    nn.init.normal_(mixer.position_bias)
    nn.init.normal_(mixer.time_bias)
    time = packing.positions if when is None else when

    def weights(q: Tensor, k: Tensor) -> Tensor:
        rows = torch.zeros(LENGTH, LENGTH, 2, dtype=torch.float64)
        for t in range(LENGTH):
            for s in range(t + 1):
                bucket = min(128, int(math.log(max(1, int(time[t] - time[s]))) / 0.301))
                bias = mixer.position_bias[t - s] + mixer.time_bias[bucket]
                rows[t, s] = silu((q[t] * k[s]).sum(-1) + bias) / LENGTH
        return rows

    def want() -> Tensor:
        u, v, q, k = silu(mixer.uvqk(x)).chunk(4, -1)
        mixed = torch.einsum("tsh,shd->thd", weights(by_head(q), by_head(k)), by_head(v)).flatten(1)
        return mixer.out(u * layer_norm(mixed, (DIM,), eps=1e-6))  # type: ignore[no-any-return]

    assert_mixes(mixer, want(), timestamps=when)
    losses = [out.square().sum() for out in (mixer(x, packing, timestamps=when), want())]
    got, expected = (torch.autograd.grad(loss, list(mixer.parameters())) for loss in losses)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


def test_hytrec_memory_decays_with_elapsed_days() -> None:
    memory = DecayingMemory(ModelConfig(dim=DIM)).double()
    x, packing = history()
    days = packing.elapsed(times()).double() / 86_400
    qkv, gate = memory.qkv_gate(x).split((3 * DIM, DIM), -1)
    q, k, v = (by_head(y) for y in silu(qkv).chunk(3, -1))
    decay, beta = memory.decay_beta(x).chunk(2, -1)
    log_decay = -softplus(decay) - softplus(memory.rate) * days[:, None]
    inputs = (normalize(q, dim=-1), normalize(k, dim=-1), v, beta.sigmoid(), log_decay)
    read = chunked_gated_delta_rule(*(y[None] for y in inputs))[0]
    scaled = read / (read.square().mean(-1, keepdim=True) + hytrec.EPSILON).sqrt()
    want = memory.out(scaled.flatten(1) * silu(gate))
    torch.testing.assert_close(memory(x, packing, days), want)
    short, long = softplus(memory.decay_beta.bias[:2]).reciprocal().tolist()  # events until a memory falls to 1/e
    assert 12 < short < 20 and 200 < long < 300


@pytest.mark.parametrize("lengths", [[70], [1], [5], [5, 6], [3, 30, 1, 36]])
def test_hytrec_attends_to_a_window(lengths: list[int]) -> None:
    attention = RecentAttention(ModelConfig(dim=DIM), 5).double()
    x, packing = torch.randn(sum(lengths), DIM).double(), Packing.from_lengths(torch.tensor(lengths))
    want = []
    for part in x.split(lengths):
        q, k, v = (by_head(y).transpose(0, 1) for y in attention.qkv(part).chunk(3, -1))
        lag = torch.arange(len(part))[:, None] - torch.arange(len(part))
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=(lag >= 0) & (lag < 5))
        want.append(attention.out(mixed.transpose(0, 1).flatten(1)))
    torch.testing.assert_close(attention(x, packing, torch.zeros(len(x))), torch.cat(want))


@pytest.mark.parametrize(("blocks", "recent"), [(1, []), (2, [1]), (3, [2]), (4, [3]), (8, [3, 7]), (9, [3, 7])])
def test_hytrec_has_three_memories_for_each_attention(blocks: int, recent: list[int]) -> None:
    mixers: list[Any] = [MIXERS["hytrec"](ModelConfig(blocks=blocks), layer) for layer in range(blocks)]
    assert [layer for layer in range(blocks) if isinstance(mixers[layer].part, RecentAttention)] == recent


@pytest.mark.parametrize("name", ["grela", "fuxi_linear"])
def test_odd_channels_are_one_line(name: str) -> None:
    config = ModelConfig(dim=7, attention=AttentionConfig(heads=1))
    with pytest.raises(UserError, match=f"^option dim: 7 is odd; mixer {name} "):
        MIXERS[name](config, 0)


class Operations(TorchDispatchMode):
    """Counts the operations of products and attention, and the elements that all other operations write."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if "scaled_dot_product" in name:
            q, k = args[1:3] if "backward" in name else args[:2]  # (..., L, D) each
            self.count += 4 * q.numel() * k.shape[-2]
        elif func._overloadpacket in flop_registry:
            self.count += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        else:
            self.count += sum(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))
        return out


def operations(mixer: Mixer, length: int) -> int:
    """The operations of the forward and backward pass of one history."""
    x = torch.randn(length, 16, requires_grad=True)
    with Operations() as counted:
        mixer(x, Packing.from_lengths(torch.tensor([length])), timestamps=torch.arange(length) * 1000).sum().backward()
    return counted.count


QUADRATIC = ("attention", "bert4rec", "hstu")


# hyena is left out, because torch sees its convolution as one operation.
@pytest.mark.parametrize("name", [name for name in MIXERS if name != "hyena"])
def test_cost_grows_linearly_where_it_should(name: str) -> None:
    mixer = MIXERS[name](ModelConfig(mixer=name, dim=16, max_length=4096), 0)
    short, long = operations(mixer, 1024), operations(mixer, 4096)
    if name in QUADRATIC:
        assert long > 8 * short
    else:
        assert long < 4.1 * short


def test_the_window_of_hytrec_costs_linearly_too() -> None:
    mixer = MIXERS["hytrec"](ModelConfig(mixer="hytrec", dim=16), 1)
    assert isinstance(mixer.part, RecentAttention)
    assert operations(mixer, 4096) < 4.1 * operations(mixer, 1024)
