"""The Hyena mixer: short convolution, gates and long filters between two projections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from hyenarec_kernels import backends
from hyenarec_kernels.blocks import BlockWeights, in_block
from hyenarec_kernels.dtypes import wide
from hyenarec_kernels.gates import GATES
from hyenarec_kernels.integers import integer
from hyenarec_kernels.nn import joint, separate
from hyenarec_kernels.nn.filters import Filter
from hyenarec_kernels.nn.named_filters import make_filter
from hyenarec_kernels.nn.projections import Projections
from hyenarec_kernels.nn.states import make_state
from hyenarec_kernels.nn.streaming import StreamingState, check_fits, check_state
from hyenarec_kernels.ops.block_step import block_step, check_block
from hyenarec_kernels.ops.checks import DTYPES, check_tensor
from hyenarec_kernels.ops.conv_step import conv_step, refuse_gradients
from hyenarec_kernels.ops.mixer_step import mixer_step
from hyenarec_kernels.segments import Index, Segments, inside, last_rows, spans
from hyenarec_kernels.sharding import is_distributed
from hyenarec_kernels.tracing import jit_tracing

State = TypeVar("State", bound=StreamingState)


class HyenaMixer(Projections):
    """Causal token mixing without attention: Hyena (arXiv 2302.10866, definition 3.1), with Legendre filters.

        z = short_conv(x W_in);    q_1 .. q_order, v = split(z)
        v <- h_i * (q_i v) + skip_i (q_i v)    for i = 1 .. order-1      (* is causal convolution)
        y = (gate(q_order) v) W_out

    At its start it does little more than convolve the input itself with its long filters. Parameters store the
    deviation from that (``hyenarec_kernels/nn/projections.py``).

    Args:
        dim: D, input and output channels.
        horizon: K, how many events back the long filters reach.
        order: the number of gates, at least 1; there are ``order - 1`` long convolutions.
        filter: "legendre" (arXiv 2603.25027), "chebyshev", "cosine", "implicit" (Hyena's own), "explicit",
            "logsparse" (:class:`hyenarec_kernels.nn.LogSparseFilter`), or a callable ``(groups, horizon) -> Filter``.
        terms: the number of polynomial or cosine terms per filter.
        groups: the number of filters per long convolution, a divisor of ``dim``; by default one per channel.
        window: whether filters decay exponentially (:class:`hyenarec_kernels.nn.Filter`).
        gate: the activation of ``q_order``: "identity" (Hyena), "sigmoid" or "silu". "none" leaves all gates out.
        short_width: W, taps of the short convolution.
        bidirectional: each long convolution also has a filter that reaches as far into the future, so that every
            position sees both sides of its sequence; such a mixer has no streaming state.
        gate_dim: the number of additional input channels, from which alone the gates are made. In ``x`` they follow the
            D channels that make the values. 0: the gates, too, are made of the D channels.
        gate_dropout: the probability, rounded to 1/256, with which :meth:`forward` drops a channel of a gate in
            training. There the gate is its bias alone, which starts at 1 for the outer gates. One draw serves a whole
            call, so it can be multiplied into a matrix of weights and not into activations.
        device, dtype: of the parameters; torch's defaults if None. On the meta device parameters have no values until
            ``to_empty`` and :meth:`reset_parameters`, or a state dict, fill them.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        horizon: int,
        *,
        order: int = 2,
        filter: str | Callable[[int, int], Filter] = "legendre",
        terms: int = 16,
        groups: int | None = None,
        window: bool = True,
        gate: Literal["identity", "sigmoid", "silu", "none"] = "identity",
        short_width: int = 3,
        bidirectional: bool = False,
        gate_dim: int = 0,
        gate_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dim, horizon = integer("HyenaMixer", "dim", dim), integer("HyenaMixer", "horizon", horizon)
        order, short_width = integer("HyenaMixer", "order", order), integer("HyenaMixer", "short_width", short_width)
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"HyenaMixer: dtype must be float32, bfloat16, float16 or float64, got {dtype}")
        if isinstance(filter, nn.Module):
            raise ValueError(
                f"HyenaMixer: filter must be a name or a callable (groups, horizon) -> Filter, such as the class "
                f"{type(filter).__name__}, got an instance of it"
            )
        groups = dim if groups is None else integer("HyenaMixer", "groups", groups)
        if dim % groups:
            raise ValueError(f"HyenaMixer: groups must be a divisor of dim {dim}, got {groups}")
        if gate not in (*GATES, "none"):
            raise ValueError(f"HyenaMixer: gate must be {', '.join(GATES)} or none, got {gate!r}")
        gate_dim = integer("HyenaMixer", "gate_dim", gate_dim, 0)
        if gate_dim and gate == "none":
            raise ValueError(f"HyenaMixer: gate_dim must be 0 without gates, got {gate_dim}")
        if not (isinstance(gate_dropout, int | float) and 0 <= gate_dropout <= 255 / 256):
            raise ValueError(f"HyenaMixer: gate_dropout must be from 0 to 255/256, got {gate_dropout!r}")
        super().__init__(dim, 0 if gate == "none" else order, short_width, device, dtype, gate_dim, gate_dropout)
        self.horizon, self.order, self.gate = horizon, order, gate
        self.register_buffer(f"{gate}_gate", torch.empty(0, device=device, dtype=dtype))  # tells the kind, as in Filter
        self.bidirectional = bidirectional

        def make_filters(count: int) -> Sequence[Filter]:
            if callable(filter):
                made = [filter(groups, horizon) for _ in range(count)]
                for one in made:
                    if not isinstance(one, Filter) or (one.groups, one.horizon) != (groups, horizon):
                        raise ValueError(
                            f"HyenaMixer: filter must make a Filter of {groups} groups and {horizon} taps, got {one}"
                        )
                    one.to(device=device, dtype=dtype)
            else:
                make = partial(make_filter, filter, terms=terms, window=window, device=device, dtype=dtype)
                made = [make(groups, horizon) for _ in range(count)]
            return cast(Sequence[Filter], nn.ModuleList(made))

        self.filters = make_filters(order - 1)
        self.ahead_filters = make_filters(order - 1 if bidirectional else 0)  # these reach into the future
        # None without long convolutions, because data-parallel training waits for the gradient of every parameter.
        self.skip = nn.Parameter(torch.empty(order - 1, dim, device=device, dtype=dtype)) if order > 1 else None
        self._reset_linear()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gives all parameters and buffers, those of the filters too, new initial values."""
        for f in (*self.filters, *self.ahead_filters):
            f.reset_parameters()
        self._reset_linear()

    @torch.no_grad()
    def _reset_linear(self) -> None:
        """Resets all but the filters, which their own constructors or resets have just filled."""
        super().reset_parameters()
        # Skips start at 0, because a residual already carries the event itself past the mixer. On ml-100k this gives a
        # validation NDCG@10 of .111, skips that start at 1 give .108 (two seeds).
        if self.skip is not None:
            self.skip.zero_()

    def forward(
        self,
        x: Tensor,
        *,
        lengths: Index | None = None,
        starts: Index | None = None,
        mask: Index | None = None,
        cu_seqlens: Index | None = None,
        timestamps: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Mixes the positions of each sequence; sequences do not see each other.

        Args:
            x: padded (B, L, D) or packed (T, D), in the dtype of the weights (under autocast in any floating-point
                dtype but float64); with ``gate_dim`` (B, L, D + gate_dim) or (T, D + gate_dim).
            lengths, starts: (B,) int32 or int64, as :func:`hyenarec_kernels.long_conv` takes them. Padding may hold
                anything.
            mask: instead of these, (B, L) bool, or integers 0 and 1. True or 1 marks real positions, which must be
                contiguous in each row; padding may be on both sides.
            cu_seqlens: (S + 1,) int32 or int64, for packed ``x``, which may then also be (1, T, D).
            timestamps: accepted and ignored, so that mixers that use time can share this signature.
            last_only: compute only the output at the last real position of each sequence, from no more than the
                ``(order-1)*(K-1) + W`` positions that it depends on.

        Returns:
            The shape of ``x``, with D channels, 0 in padding; with ``last_only`` (B, D) or (S, D), 0 for an empty
            sequence.

        Raises:
            ValueError: arguments do not fit together, or the mask has holes.
        """
        if _packed_in_a_batch(x, cu_seqlens):
            y = self.forward(
                x[0], lengths=lengths, starts=starts, mask=mask, cu_seqlens=cu_seqlens, last_only=last_only
            )
            return y if last_only else y[None]
        where, drawn = self._where(x, lengths, starts, mask, cu_seqlens), self.draw_gates()
        if not last_only:
            if (learned := joint.learned(self, x)) is not None:
                return joint.mix(self, learned, x, where, drawn)
            return separate.mix(self, x, where, drawn)[0]
        if self.bidirectional:  # the last position's inputs may depend on all of its sequence
            y = separate.mix(self, x, where, drawn)[0]
            return last_rows(y.reshape(-1, self.dim), *spans(x, inside(x, where)), 1)[:, 0]
        return separate.mix_last(self, x, where, drawn)

    @torch.inference_mode(False)  # steps write to a state, and only inference mode may write to inference tensors
    @torch.no_grad()
    def init_state(
        self, batch_size: int, *, state: Literal["exact", "compact"] = "exact", moments: torch.dtype | None = None
    ) -> StreamingState:
        """The state of ``batch_size`` empty sequences; it captures the filters as they are now.

        Args:
            state: "exact" gives a :class:`MixerState`, the last ``horizon - 1`` inputs. "compact", for polynomial
                filters (legendre, chebyshev), gives a :class:`hyenarec_kernels.nn.CompactState`, which is smaller if
                the horizon is long; where it would not be smaller, it gives the exact one.
            moments: the dtype in which a compact state remembers finished chunks: by default that of the state, or
                torch.bfloat16, half as large as float32.

        Raises:
            ValueError: ``batch_size`` is negative, ``state`` or ``moments`` is not one of these, or the filters have no
                compact state.
            NotImplementedError: the mixer is bidirectional.
        """
        op = "HyenaMixer.init_state"
        batch_size = integer(op, "batch_size", batch_size, 0)
        if self.bidirectional:
            raise NotImplementedError("HyenaMixer: a bidirectional mixer sees the future and has no streaming state")
        short = (self.short_taps().flip(1).T.contiguous(), self.short_offset())
        return make_state(
            op, batch_size, state, moments, self.filters, self.skip, short, self.gate, self.horizon, self.dim
        )

    def prefill(
        self,
        x: Tensor,
        *,
        lengths: Index | None = None,
        starts: Index | None = None,
        mask: Index | None = None,
        cu_seqlens: Index | None = None,
        state: Literal["exact", "compact"] = "exact",
        moments: torch.dtype | None = None,
    ) -> tuple[Tensor, StreamingState]:
        """Runs :meth:`forward` on whole histories, without dropout, and makes the state after the last event of each,
        for :meth:`step`.

        The first arguments are those of :meth:`forward`; ``state`` and ``moments`` are those of :meth:`init_state`. The
        output has gradients, the state has none.
        """
        if _packed_in_a_batch(x, cu_seqlens):
            given: dict[str, Any] = {"lengths": lengths, "starts": starts, "mask": mask, "cu_seqlens": cu_seqlens}
            y, after = self.prefill(x[0], **given, state=state, moments=moments)
            return y[None], after
        where = self._where(x, lengths, starts, mask, cu_seqlens)
        learned = None if torch.is_grad_enabled() else joint.learned(self, x)
        if learned is None:
            y, projected, gated = separate.mix(self, x, where, None)
        else:
            y, kept = joint.mix_and_keep(self, learned, x, where)
            projected, gated = kept.projected, [(None, kept.u)]
        first, length = spans(x, inside(x, where))
        empty = self.init_state(first.shape[0], state=state, moments=moments)

        def newest(values: Tensor, count: int) -> Tensor:  # (..., C) to (S, count, C)
            rows = values.detach().reshape(-1, values.shape[-1])
            return last_rows(rows, first, length, count).to(empty.short_taps.dtype)

        with torch.inference_mode(False), torch.no_grad(), _without_autocast(x):
            count = empty.reach
            histories = [separate.product(None if q is None else newest(q, count), newest(v, count)) for q, v in gated]
            inputs = torch.stack(histories, 1) if histories else None
            return y, empty.filled(newest(projected, self.short_width - 1), inputs, length)

    def step(self, x: Tensor, state: State, *, block: BlockWeights | None = None) -> tuple[Tensor, State]:
        """Reads one more event of every sequence: takes ``x`` (B, D), or (B, D + gate_dim), and returns the output
        (B, D) and ``state`` itself, updated.

        With ``block`` these are the input and output of a pre-norm block around the mixer
        (:func:`hyenarec_kernels.blocks.in_block`). On a CPU such a step, too, is one call.

        The output equals that of :meth:`forward` at that position, at K multiply-adds per channel and without a matrix
        product over the history. The state is written to, not copied: to continue one history in two ways, make two
        copies with ``state.index``. There are no gradients, not even of the weights.

        Raises:
            ValueError: ``x``, ``state`` or ``block`` does not fit the mixer. A state of other weights of the same shape
                is not noticed.
            NotImplementedError: gradients are enabled and ``x`` requires one, or a transform of `torch.func` is active.
        """
        op = "HyenaMixer.step"
        self._check(op, x)
        check_state(op, "state", state)
        refuse_gradients(op, "give forward whole sequences", x)
        if x.dim() != 2 or x.shape != (state.projected.shape[0], self.width):
            raise ValueError(
                f"{op}: x must be ({state.projected.shape[0]}, {self.width}) beside this state, got {tuple(x.shape)}"
            )
        check_fits(op, state, self.gate, self._state_shapes(state), self.short_weight)
        if block is not None:
            check_block(op, block, self.dim, x)
        with torch.no_grad():
            return self._step(x, state, block), state

    def _step(self, x: Tensor, state: StreamingState, block: BlockWeights | None) -> Tensor:
        if (matrices := self._matrices_for(x, "mixer_step" if block is None else "block_step")) is not None:
            short, (memory, tables) = (state.projected, state.short_taps, state.short_bias), state.memory()
            if block is None:
                return mixer_step(x, *matrices, *short, memory, tables, state.steps, state.gate)
            return block_step(x, *block, *matrices, *short, memory, tables, state.steps, state.gate)
        if block is not None:
            return in_block(x, block, lambda normed: self._step(normed, state, None))
        new = self.project_in(x)  # (B, (num_gates + 1) * D)
        z = conv_step(new.to(state.short_taps.dtype), state.projected, state.short_taps, state.steps)
        *gates, v = (z + state.short_bias).to(new.dtype).chunk(self.num_gates + 1, -1)
        q: list[Tensor | None] = [*gates] or [None] * self.order
        gate = separate.gated(self, q[-1])
        for i in range(self.order - 1):
            v = state.convolve(i, v, q[i], gate if i == self.order - 2 else None)
        state.steps.add_(1)
        return self.project_out(v if self.filters else separate.product(gate, v))

    def _matrices_for(self, x: Tensor, operator: str) -> tuple[Tensor, Tensor] | None:
        """The matrices for the ``operator`` that does a whole step. None if its parts are to be called one by one: on
        accelerators, in half precision, for which there is no such kernel, and where a host library has replaced a
        layer or method."""
        weight = self.short_weight
        if x.device.type != "cpu" or x.dtype != wide(weight.dtype) or torch.is_autocast_enabled("cpu"):
            return None
        if is_distributed(x) or is_distributed(weight) or backends.lacks(operator):
            return None
        return self.matrices()

    def __prepare_scriptable__(self) -> HyenaMixer:
        raise NotImplementedError("HyenaMixer: torch.jit.script cannot read it; use torch.export or torch.jit.trace")

    def _where(
        self, x: Tensor, lengths: Index | None, starts: Index | None, mask: Index | None, cu_seqlens: Index | None
    ) -> Segments:
        """Checks the arguments and finds where the sequences of ``x`` lie, once for the whole call."""
        self._check("HyenaMixer", x)
        if jit_tracing() and torch.is_grad_enabled():
            raise NotImplementedError("HyenaMixer: torch.jit.trace records no gradients; trace it under torch.no_grad")
        if x.dim() not in (2, 3) or x.shape[-1] != self.width:
            raise ValueError(f"HyenaMixer: x must be (B, L, {self.width}) or (T, {self.width}), got {tuple(x.shape)}")
        if mask is None:
            return Segments.of("HyenaMixer", x, lengths, starts, cu_seqlens)
        if lengths is not None or starts is not None or cu_seqlens is not None:
            raise ValueError("HyenaMixer: mask takes the place of lengths, starts and cu_seqlens; give one of them")
        return Segments.of_mask("HyenaMixer", x, mask)

    def _check(self, op: str, x: Tensor) -> None:
        """Raises ValueError unless ``x`` is a tensor in the dtype of the weights, or in one that autocast will cast."""
        check_tensor(op, "x", x)
        dtype = self.short_weight.dtype
        if x.dtype == dtype:
            return
        floats = x.is_floating_point() and torch.float64 not in (x.dtype, dtype)  # autocast leaves float64 alone
        if not (floats and torch.is_autocast_enabled(x.device.type)):
            raise ValueError(f"{op}: x must be {dtype} as the mixer's weights are, got {x.dtype}")

    def _state_shapes(self, state: StreamingState) -> dict[str, tuple[int, ...]]:
        channels = (self.num_gates + 1) * self.dim
        return {
            "projected": (state.steps.shape[0], self.short_width - 1, channels),
            "short_taps": (self.short_width, channels),
            "short_bias": (channels,),
        } | state.shapes(self.order - 1, self.horizon, self.dim)


def _packed_in_a_batch(x: Tensor, cu_seqlens: Index | None) -> bool:
    """Whether ``x`` is (1, T, D) of packed sequences, as transformers' collators make them."""
    return cu_seqlens is not None and isinstance(x, Tensor) and x.dim() == 3 and x.shape[0] == 1


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off, so that what enters a state is not rounded more than in the forward pass."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
