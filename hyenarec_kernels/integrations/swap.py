"""Exchanging the attention of a model that is already built, and checking that the exchange is sound."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hyenarec_kernels.integrations.attention import HyenaAttention
from hyenarec_kernels.nn import HyenaMixer
from hyenarec_kernels.ops.checks import check_tensor

Make = Callable[..., nn.Module]


def replace_attention(
    model: nn.Module, horizon: int, makers: Mapping[type[nn.Module], Make] | None = None, **options: Any
) -> dict[str, str]:
    """Puts a :class:`hyenarec_kernels.integrations.HyenaAttention` where each ``nn.MultiheadAttention`` of ``model``
    stands, in its mode, on its device and in its dtype.

    The cross-attention of an ``nn.TransformerDecoderLayer`` stays. Hooks and parametrizations of what is replaced are
    gone with it.

    Args:
        model: changed in place, or not at all if something is wrong. Its optimizer must be made afterwards: the old
            parameters are gone. Whatever wraps it for several devices comes afterwards, too.
        horizon: K, how many events back the filters reach; the longest history that the model takes is a good value.
        makers: for attention classes of a library's own, a function ``make(attention, horizon, **options)`` that
            returns the module to stand there.
        options: of :class:`hyenarec_kernels.integrations.HyenaAttention`, such as ``query_only=True``.

    Returns:
        What was replaced: for each module's name, its old class and its new one.

    Raises:
        ValueError: nothing in ``model`` could be replaced, or what would be replaced is cross-attention.
    """
    makers = {nn.MultiheadAttention: HyenaAttention.like, **(makers or {})}
    _refuse_wrappers(model)
    replaced: dict[str, nn.Module] = {}
    made: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        make = next((makers[kind] for kind in type(module).__mro__ if kind in makers), None)
        parent, _, attribute = name.rpartition(".")
        crossed = isinstance(model.get_submodule(parent), nn.TransformerDecoderLayer) and attribute == "multihead_attn"
        inside = any(name.startswith(f"{outer}.") for outer in replaced)  # of attention that is replaced as a whole
        if make is None or not name or crossed or inside:
            continue
        if module not in made:  # a module that is used twice is replaced by one
            made[module] = _settled(make(module, horizon, **options), module, options)
        replaced[name] = module
    if not replaced:
        wanted = ", ".join(kind.__name__ for kind in makers)
        seen = sorted({type(m).__name__ for m in model.modules() if "attention" in type(m).__name__.lower()})
        seen = [name for name in seen if name != type(model).__name__]
        raise ValueError(
            f"replace_attention: found no {wanted} inside the model"
            + (f"; makers= can name a function for its {', '.join(seen)}" if seen else "")
        )
    for name, module in replaced.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, made[module])
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # for its own attention alone
    return {name: f"{type(old).__name__} -> {type(made[old]).__name__}" for name, old in replaced.items()}


def _refuse_wrappers(model: nn.Module) -> None:
    """New parameters would be unknown to what synchronises the old ones, and each process would learn its own."""
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"):
                raise ValueError(
                    f"replace_attention: {kind.__name__} wraps the model already, and would not know the new "
                    "parameters; replace attention first, and wrap the model then"
                )


def _settled(new: nn.Module, old: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """``new`` in the mode of ``old``, on its device and in its dtype, unless ``options`` name others."""
    weight = next((p for p in old.parameters() if p.is_floating_point()), None)
    if weight is not None and "device" not in options:
        new.to(weight.device)
    if weight is not None and "dtype" not in options:
        new.to(weight.dtype)
    return new.train(old.training)


Forward = Callable[[nn.Module, Tensor], Tensor]


def check_swap(
    model: nn.Module,
    events: Tensor,
    forward: Forward | None = None,
    *,
    padding: int = 0,
    other: int | None = None,
) -> list[str]:
    """Looks for the faults that exchanged attention has had in real models, and prints what it finds.

    It checks that no output depends on later events (unless its mixers are bidirectional), that none depends on
    padding, that the model gives the same outputs after its weights are saved and loaded into a copy, and that its
    mixers still are near the start that they gave themselves. What it could not check, it names as a fault.

    Args:
        model: with :class:`hyenarec_kernels.nn.HyenaMixer` inside, before it is trained; used in evaluation mode, and
            left as it was.
        events: (B, L) integers, histories of item numbers as the model takes them, padded with ``padding``. At least
            one row should hold padding.
        forward: ``forward(model, events)`` returns the outputs of every position, (B, L, ...), without a cache;
            ``model(events)`` by default. What is compiled in it runs uncompiled.
        padding: the number that stands for no event.
        other: an item number that may stand in place of any; the largest in ``events`` by default.

    Returns:
        What is wrong, a line for each fault; empty where all is well.

    Raises:
        ValueError: there is no mixer in ``model``, ``events`` are something else, or what ``forward`` returns.
    """
    check_tensor("check_swap", "events", events)
    if events.dim() != 2 or not events.numel() or events.is_floating_point():
        raise ValueError(f"check_swap: events must be (B, L) integers, got {tuple(events.shape)} {events.dtype}")
    forward = forward or (lambda model, events: model(events))
    mixers = {name: module for name, module in model.named_modules() if isinstance(module, HyenaMixer)}
    if not mixers:
        raise ValueError("check_swap: there is no HyenaMixer in the model")
    both_ways = all(mixer.bidirectional for mixer in mixers.values())
    exchange = int(events.max()) if other is None else other
    real = events != padding
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[events.device] if events.is_cuda else []),
            torch.compiler.set_stance("force_eager"),  # compiled programs run no hooks
        ):
            want = forward(model, events)
            if not isinstance(want, Tensor) or want.shape[:2] != events.shape:
                got = tuple(want.shape) if isinstance(want, Tensor) else type(want).__name__
                raise ValueError(
                    f"check_swap: forward must return a tensor, outputs of every position, ({events.shape[0]}, "
                    f"{events.shape[1]}, ...), got {got}"
                )
            faults = [
                *([] if both_ways else _future(model, events, forward, want, real, exchange)),
                *_padding(model, events, forward, want, real, mixers),
                *_reload(model, events, forward, want, list(mixers)),
                *_start(mixers),
            ]
    finally:
        for module, mode in training.items():
            module.training = mode
    print("\n".join(f"check_swap: {fault}" for fault in faults) or "check_swap: nothing is wrong")
    return faults


def _differs(a: Tensor, b: Tensor, where: Tensor) -> bool:
    return not torch.allclose(a[where], b[where], rtol=1e-3, atol=1e-4, equal_nan=True)


def _future(model: nn.Module, events: Tensor, forward: Forward, want: Tensor, real: Tensor, other: int) -> list[str]:
    """The second half of each history is exchanged; the first half's outputs must stay."""
    half = events.shape[1] // 2
    later = torch.arange(events.shape[1], device=events.device) >= half
    changed = torch.where(real & later & (events != other), other, events)
    if torch.equal(changed, events):
        return ["future: not checked, no event in the second half can be exchanged; pass other="]
    earlier = real & ~later
    if not earlier.any():
        return ["future: not checked, no event is in the first half; pass longer histories"]
    if _differs(forward(model, changed), want, earlier):
        return ["future: outputs depend on later events"]
    return []


def _padding(
    model: nn.Module, events: Tensor, forward: Forward, want: Tensor, real: Tensor, mixers: dict[str, HyenaMixer]
) -> list[str]:
    """Noise where a mixer's input is padding must change no output of an event."""
    if real.all():
        return ["padding: not checked, no row of events is padded"]
    faults = []
    for name, mixer in mixers.items():
        unknown = ["it is not called"]

        def add_noise(
            module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any], unknown: list[str] = unknown
        ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
            x = inputs[0] if inputs else options["x"]
            packed = options.get("cu_seqlens") is not None  # there is no padding
            fits = packed or x.shape[:2] == events.shape
            unknown[:] = [] if fits else [f"its input is {tuple(x.shape)}, not (B, L, D)"]
            noise = 0 if packed or not fits else torch.where(real[..., None], 0, torch.randn_like(x))
            return (), options | {"x": x + noise}

        hook = mixer.register_forward_pre_hook(add_noise, with_kwargs=True)
        try:
            if _differs(forward(model, events), want, real):
                faults.append(f"padding: {name} reads padding; hand it a mask or lengths")
        finally:
            hook.remove()
        faults += [f"padding: {name} is not checked, {why}" for why in unknown]
    return faults


def _reload(model: nn.Module, events: Tensor, forward: Forward, want: Tensor, mixers: list[str]) -> list[str]:
    """A copy of other weights, given those of the model, must give its outputs."""
    everywhere = torch.ones_like(events, dtype=torch.bool)
    other = copy.deepcopy(model)
    saved = copy.deepcopy(model.state_dict())
    inside = tuple(f"{name}." if name else "" for name in mixers)
    # Outside of mixers, a buffer that is not saved is a constant of the host's: positions, a causal mask.
    buffers = [buffer for name, buffer in other.named_buffers() if name in saved or name.startswith(inside)]
    for tensor in (*other.parameters(), *buffers):
        if tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor))
    if not _differs(forward(other, events), want, everywhere):
        return [
            "reload: not checked, forward gives the same outputs for other weights; call the model that it is given"
        ]
    other.load_state_dict(saved)
    if _differs(forward(other, events), want, everywhere):
        return ["reload: a copy with the same weights gives other outputs; some of them are not in state_dict()"]
    return []


def _start(mixers: dict[str, HyenaMixer]) -> list[str]:
    """Weights of three times the size that a mixer gives itself were drawn by somebody else."""
    faults = []
    for name, mixer in mixers.items():
        fresh = copy.deepcopy(mixer)
        fresh.reset_parameters()
        for kind, parameter in mixer.named_parameters():
            size, usual = parameter.float().std().item(), fresh.get_parameter(kind).float().std().item()
            if parameter.dim() > 1 and size > 3 * usual > 0:
                faults.append(f"start: {name}.{kind} is {size / usual:.0f} times as large as it starts")
    return faults
