"""Replaces the attention of a model that is already built, and checks that the result is sound."""

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
CUTS = 64  # places at most where `check_swap` looks for outputs that read the future
FAR = 0.5  # root mean square of a parameter that starts at 0; matrices drawn anew by xavier stay below


def replace_attention(
    model: nn.Module, horizon: int, makers: Mapping[type[nn.Module], Make] | None = None, **options: Any
) -> dict[str, str]:
    """Replaces each ``nn.MultiheadAttention`` in ``model`` by a :class:`hyenarec_kernels.integrations.HyenaAttention`,
    in the same training mode, on the same device and in the same dtype.

    The cross-attention of an ``nn.TransformerDecoderLayer`` stays. Hooks and parametrizations of replaced modules are
    lost.

    Args:
        model: changed in place, or not at all if an error is raised. Make its optimizer afterwards, because the old
            parameters are gone. Also wrap it for several devices (DDP, FSDP) only afterwards.
        horizon: K, how many events back the filters reach; the longest history that the model takes is a good value.
        makers: for a library's own attention classes: maps each class to a function
            ``make(attention, horizon, **options)`` that returns its replacement.
        options: further arguments of :class:`hyenarec_kernels.integrations.HyenaAttention`, such as
            ``query_only=True``, or of the functions in ``makers``.

    Returns:
        What was replaced: for each module's name, "OldClass -> NewClass".

    Raises:
        ValueError: nothing in ``model`` could be replaced, a module to be replaced is cross-attention or of a subclass
            with another ``forward``, or ``model`` is already wrapped for several devices.
    """
    makers = {nn.MultiheadAttention: HyenaAttention.like, **(makers or {})}
    _refuse_wrappers(model)
    replaced: dict[str, nn.Module] = {}
    made: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = next((kind for kind in type(module).__mro__ if kind in makers), None)
        parent, _, attribute = name.rpartition(".")
        crossed = isinstance(model.get_submodule(parent), nn.TransformerDecoderLayer) and attribute == "multihead_attn"
        inside = any(name.startswith(f"{outer}.") for outer in replaced)  # part of what is replaced as a whole
        if kind is None or not name or crossed or inside:
            continue
        if kind is nn.MultiheadAttention and type(module).forward is not kind.forward:
            raise ValueError(
                f"replace_attention: {name} is a {type(module).__name__}, which has a forward of its own; makers= can "
                "name a function for it"
            )
        if module not in made:  # a module in several places gets one replacement
            made[module] = _settled(makers[kind](module, horizon, **options), module, options)
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
            module.use_nested_tensor = False  # only torch's own attention takes nested tensors
    return {name: f"{type(old).__name__} -> {type(made[old]).__name__}" for name, old in replaced.items()}


def _refuse_wrappers(model: nn.Module) -> None:
    """Raises ValueError if the model is wrapped for several devices. The wrapper would not know the new parameters and
    not synchronise them, so that each process would learn its own."""
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"):
                raise ValueError(
                    f"replace_attention: {kind.__name__} wraps the model already, and would not know the new "
                    "parameters; replace attention first, and wrap the model then"
                )


def _settled(new: nn.Module, old: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """``new`` in the training mode of ``old``, on its device and in its dtype, unless ``options`` name others."""
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
    """Looks for faults that replaced attention has had in real models, and prints what it finds.

    It checks that outputs depend on earlier events, that none depends on later events (unless the mixers are
    bidirectional) or on padding, that the model gives the same outputs after its weights are saved and loaded into a
    copy, and that the mixers' parameters still have their initial size (nothing else has initialised them since). A
    check that was not possible is listed as a fault. Tensors outside of mixers that are neither parameters nor stored
    in ``state_dict()`` count as constants of the model.

    Args:
        model: a model with :class:`hyenarec_kernels.nn.HyenaMixer` inside, not yet trained. It is run in evaluation
            mode and left as it was.
        events: (B, L) integers, histories of item numbers as the model takes them, padded with ``padding``. At least
            one row should hold padding.
        forward: ``forward(model, events)`` returns the outputs of every position, (B, L, ...), without a cache;
            ``model(events)`` by default. Compiled parts run uncompiled.
        padding: the item number that marks padding.
        other: an item number that may replace any other in ``events``; by default the largest there.

    Returns:
        What is wrong, one line per fault; empty if nothing is.

    Raises:
        ValueError: there is no mixer in ``model``, or ``events`` or the result of ``forward`` is not as described.
    """
    check_tensor("check_swap", "events", events)
    if events.dim() != 2 or not events.numel() or events.is_floating_point():
        raise ValueError(f"check_swap: events must be (B, L) integers, got {tuple(events.shape)} {events.dtype}")
    forward = forward or (lambda model, events: model(events))
    mixers = {name: module for name, module in model.named_modules() if isinstance(module, HyenaMixer)}
    if not mixers:
        raise ValueError("check_swap: there is no HyenaMixer in the model")
    both_ways = all(mixer.bidirectional for mixer in mixers.values())
    real = events != padding
    exchanged = torch.where(real, int(events.max()) if other is None else other, events)
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
                *_past(model, events, forward, want, real, exchanged),
                *([] if both_ways else _future(model, events, forward, want, real, exchanged)),
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
    """Whether outputs differ by more than rounding, relative to the largest of them."""
    a, b = a[where].double(), b[where].double()
    largest = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 1.0
    return not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)


def _past(
    model: nn.Module, events: Tensor, forward: Forward, want: Tensor, real: Tensor, exchanged: Tensor
) -> list[str]:
    """Exchanges the first half of each history's events; outputs in the second half must change."""
    number = real.cumsum(1)
    earlier = real & (2 * number <= number[:, -1:])
    changed = torch.where(earlier, exchanged, events)
    if torch.equal(changed, events):
        return ["past: not checked, no event in the first half can be exchanged; pass other="]
    if not _differs(forward(model, changed), want, real & ~earlier & earlier.any(1, keepdim=True)):
        return ["past: outputs do not depend on earlier events; does the mask mark padding as events?"]
    return []


def _future(
    model: nn.Module, events: Tensor, forward: Forward, want: Tensor, real: Tensor, exchanged: Tensor
) -> list[str]:
    """Exchanges the events from each position on, or from `CUTS` of them; outputs before it must not change."""
    length = events.shape[1]
    # Of long histories pairs of neighbouring positions, because a leak may be within pairs of events alone.
    starts = range(1, length) if length <= CUTS else range(1, length - 1, -(-2 * length // CUTS))
    cuts = starts if length <= CUTS else [cut for start in starts for cut in (start, start + 1)]
    position, checked = torch.arange(length, device=events.device), False
    for cut in cuts:
        later = position >= cut
        changed, earlier = torch.where(later, exchanged, events), real & ~later
        if torch.equal(changed, events) or not earlier.any():
            continue
        checked = True
        if _differs(forward(model, changed), want, earlier):
            return [f"future: outputs before position {cut} depend on events from there on"]
    return [] if checked else ["future: not checked, no event after another can be exchanged; pass other="]


def _padding(
    model: nn.Module, events: Tensor, forward: Forward, want: Tensor, real: Tensor, mixers: dict[str, HyenaMixer]
) -> list[str]:
    """Adds noise to the padding in each mixer's input; outputs at events must not change."""
    if real.all():
        return ["padding: not checked, no row of events is padded"]
    faults = []
    for name, mixer in mixers.items():
        unknown = ["it is not called"]

        def add_noise(
            module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any], unknown: list[str] = unknown
        ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
            x = inputs[0] if inputs else options["x"]
            packed = options.get("cu_seqlens") is not None  # packed input has no padding
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
    """Changes the weights of a copy, then loads those of the model into it; it must give the model's outputs."""
    everywhere = torch.ones_like(events, dtype=torch.bool)
    try:
        other = copy.deepcopy(model)
    except Exception as error:  # whatever a module of the model keeps
        return [f"reload: not checked, copy.deepcopy(model) raises {type(error).__name__}"]
    saved = copy.deepcopy(model.state_dict())
    inside = tuple(f"{name}." if name else "" for name in mixers)
    # Outside of mixers, a buffer that is not saved is a constant of the model's (positions, a causal mask): it stays.
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
    """Reports parameters over three times as large as a mixer initialises them, or far from the 0 that they start at:
    something else has initialised them since."""
    faults = []
    for name, mixer in mixers.items():
        fresh = copy.deepcopy(mixer)
        fresh.reset_parameters()
        for kind, parameter in mixer.named_parameters():
            size, usual = (p.float().square().mean().sqrt().item() for p in (parameter, fresh.get_parameter(kind)))
            if size > 3 * usual > 0:
                faults.append(f"start: {name}.{kind} is {size / usual:.0f} times as large as it starts")
            elif not usual and size > FAR:
                faults.append(f"start: {name}.{kind} starts at 0, and has a size of {size:.1f}")
    return faults
