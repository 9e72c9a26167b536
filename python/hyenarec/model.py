"""The backbone that all recommenders share; only the mixer differs."""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding, gelu, silu

from hyenarec.cloze import hide_next
from hyenarec.config import ModelConfig
from hyenarec.data.batches import Batch
from hyenarec.data.item_features import Features
from hyenarec.errors import UserError
from hyenarec.featured_items import FeaturedItems
from hyenarec.item_shards import ItemShard
from hyenarec.mixers import MIXERS, State, grouping
from hyenarec.mixers.hyena import HyenaRecMixer
from hyenarec.model_state import ModelState
from hyenarec.packing import Packing
from hyenarec.repeats import Recent, RepeatHead
from hyenarec_kernels.blocks import BlockWeights
from hyenarec_kernels.nn import StreamingState, fast_linear
from hyenarec_kernels.ops import dropout as kernels


class Dropout(nn.Module):
    """Dropout of values, or of their GELU; its probability is rounded to 1/256.

    On a CPU it is :func:`hyenarec_kernels.ops.dropout.dropout`, which stores no mask; torch's own draws one random
    number per element, on one thread. On a GPU it is torch's.
    """

    def __init__(self, probability: float, activation: Literal["gelu"] | None = None) -> None:
        super().__init__()
        self.probability, self.activation = round(256 * probability) / 256, activation

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return gelu(x) if self.activation else x
        if x.device.type == "cpu":
            seed = torch.randint(-(2**63), 2**63 - 1, (1,))
            return kernels.dropout(x, self.probability, seed, activation=self.activation)
        return dropout(gelu(x) if self.activation else x, self.probability)


class FeedForward(nn.Sequential):
    """Two linear layers with an activation between them."""

    def forward(self, x: Tensor) -> Tensor:
        up, activation, down = self
        return fast_linear(down, activation(fast_linear(up, x)))


class Block(nn.Module):
    """Pre-norm residual mixer, then pre-norm residual feed-forward (GELU, 4x)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(config.dim)
        self.mixer = MIXERS[config.mixer](config, layer)
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.ffn = self._feed_forward(config)
        self.dropout = Dropout(config.dropout)
        self.frozen: BlockWeights | None = None  # once `freeze` has been called

    def _feed_forward(self, config: ModelConfig) -> nn.Sequential:
        return FeedForward(
            nn.Linear(config.dim, 4 * config.dim),
            Dropout(config.dropout, activation="gelu"),
            nn.Linear(4 * config.dim, config.dim),
        )

    def forward(self, x: Tensor, batch: Batch, last_only: bool, small: Tensor | None = None) -> Tensor:
        read, times = self._read(x, small), batch.timestamps
        mixed = grouping.mix(self.mixer, read, batch.packing, timestamps=times, last_only=last_only)
        if last_only:
            x = x[batch.packing.last]  # (S, D)
        return self._after(x, mixed)

    def prefill(
        self, x: Tensor, packing: Packing, timestamps: Tensor | None, compact: bool, small: Tensor | None = None
    ) -> tuple[Tensor, State]:
        mixed, state = self.mixer.prefill(self._read(x, small), packing, timestamps=timestamps, compact=compact)
        return self._after(x, mixed), state

    def step(
        self, x: Tensor, state: State, timestamps: Tensor | None, small: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if self.frozen is not None:
            operator = cast(HyenaRecMixer, self.mixer).operator
            return operator.step(x, cast(StreamingState, state), block=self.frozen)
        mixed, state = self.mixer.step(self._read(x, small), state, timestamps=timestamps)
        return self._after(x, mixed), state

    def freeze(self) -> None:
        """Fixes the weights, for inference: where the mixer is hyena's operator alone, a step of the block is then one
        call of it."""
        if type(self) is Block and isinstance(self.mixer, HyenaRecMixer) and self.mixer.is_operator:
            up, down = cast(nn.Linear, self.ffn[0]), cast(nn.Linear, self.ffn[2])
            norms = [part.detach() for norm in (self.mixer_norm, self.ffn_norm) for part in (norm.weight, norm.bias)]
            feed_forward = [part.detach() for of in (up, down) for part in (of.weight.t().contiguous(), of.bias)]
            self.frozen = BlockWeights(norms, feed_forward, self.ffn_norm.eps)

    def _read(self, x: Tensor, small: Tensor | None) -> Tensor:
        """What the mixer reads: the normed stream, concatenated with the events' second embedding if there is one."""
        normed: Tensor = self.mixer_norm(x)
        return normed if small is None else torch.cat((normed, small.to(normed.dtype)), -1)

    def _after(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.dropout(mixed)
        return x + self.dropout(self.ffn(self.ffn_norm(x)))  # type: ignore[no-any-return]


class SwiGLU(nn.Sequential):
    """Two linear layers, the first twice as wide: the SiLU of one half multiplies the other."""

    def forward(self, x: Tensor) -> Tensor:
        up, dropped, down = self
        gate, value = fast_linear(up, x).chunk(2, -1)
        return fast_linear(down, dropped(silu(gate) * value))


class LiGRBlock(Block):
    """A block in which a gate, computed from the residual stream itself, multiplies what each of its two branches adds:

        x <- x + sigmoid(W x + b) mixer(norm(x)),    and so for the feed-forward, which is a SwiGLU (4x)

    LiGR's layers (arXiv 2502.03417) as eSASRec has them (arXiv 2508.06450). Ours: any mixer, not attention alone; and
    layers are initialised as torch does by default.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.mixer_gate = nn.Linear(config.dim, config.dim)
        self.ffn_gate = nn.Linear(config.dim, config.dim)

    def _feed_forward(self, config: ModelConfig) -> nn.Sequential:
        return SwiGLU(
            nn.Linear(config.dim, 8 * config.dim, bias=False),
            Dropout(config.dropout),
            nn.Linear(4 * config.dim, config.dim, bias=False),
        )

    def _after(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + fast_linear(self.mixer_gate, x).sigmoid() * self.dropout(mixed)
        added: Tensor = self.dropout(self.ffn(self.ffn_norm(x)))
        return x + fast_linear(self.ffn_gate, x).sigmoid() * added


BLOCK_KINDS: dict[str, type[Block]] = {"plain": Block, "ligr": LiGRBlock}


class SmallEmbedding(nn.Module):
    """A second, small embedding of events: items, and positions where the model has them.

    DARE (arXiv 2410.02604) has one table for attention and another for what is attended to, because in one table the
    two compete for the same numbers. Ours: it serves to predict the next item, so that a query is made from the event
    before instead of from a candidate; the values' table also gives the scores; each block projects the small embedding
    to full width, so that the same kernels serve; and with hyena it makes the gates.
    """

    def __init__(self, config: ModelConfig, n_items: int, length: int) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items, config.small_dim)
        self.positions = nn.Embedding(length, config.small_dim) if length else None
        nn.init.normal_(self.items.weight)  # of unit variance, like what the mixers read beside it
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=config.small_dim**-0.5)

    def forward(self, items: Tensor, positions: Tensor | None) -> Tensor:
        x: Tensor = self.items(items)
        return x if self.positions is None else x + self.positions(positions)


class SequenceModel(nn.Module):
    """Item embedding -> dropout -> blocks -> norm; scores are ``h E^T + bias`` with the embedding tied.

    ``forward(batch)`` returns hidden states (T, D), or with ``last_only`` only those of each sequence's last event,
    (S, D). With a ``table`` (R, D) the batch's items are rows of it instead of the whole item embedding. :meth:`scores`
    returns scores over the catalogue, (S, V). A model whose mixer is not causal has a learned ``mask`` that stands for
    the batch's masked items; to predict the next item, a masked one is put after the history.

    With ``shard_items`` each of the processes that train together holds a :attr:`shard` of the table. All must pass the
    same batches, and scores are those of a process's own items, (S, v).

    With ``features`` of the items the table is a sum (:mod:`hyenarec.featured_items`). With ``config.repeats`` on, a
    repeat head (:mod:`hyenarec.repeats`) adds to the scores of the history's items; auto, which
    :func:`hyenarec.repeats.settled` decides by a log, here means off.

    A model whose mixer is causal can also read events one at a time: :meth:`prefill` and :meth:`step` give the hidden
    states that ``forward`` gives over everything that each sequence has read so far.
    """

    def __init__(
        self, config: ModelConfig, n_items: int, *, shard_items: bool = False, features: Features | None = None
    ) -> None:
        super().__init__()
        if config.mixer not in MIXERS:
            raise UserError(f"option mixer: {config.mixer!r} is none of {', '.join(MIXERS)}")
        self.config = config
        self.items: nn.Embedding
        if shard_items:
            self.items = shard = ItemShard(n_items, config.dim)
            shard.draw(config.dim**-0.5)
        else:
            self.items = nn.Embedding(n_items, config.dim) if features is None else FeaturedItems(features, config.dim)
            nn.init.normal_(self.items.weight, std=config.dim**-0.5)
        self.bias = nn.Parameter(torch.zeros(self.items.num_embeddings))
        mixer = MIXERS[config.mixer]
        self.mask = None if mixer.causal else nn.Parameter(torch.randn(config.dim))
        length = config.max_length if mixer.causal else config.max_length + 1  # the history and the masked item
        self.positions = nn.Embedding(length, config.dim) if mixer.needs_positions else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=config.dim**-0.5)
        self.small: SmallEmbedding | None = None
        if config.small_dim:
            self.small = SmallEmbedding(config, n_items, length if mixer.needs_positions else 0)
        self.repeats: RepeatHead | None = None
        if config.repeats == "on":
            self.repeats = RepeatHead(config.dim, config.max_length, n_items)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(BLOCK_KINDS[config.block](config, layer) for layer in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, batch: Batch, *, last_only: bool = False, table: Tensor | None = None) -> Tensor:
        positions = self._positions(batch.packing)
        x = self._embed(batch.items, positions, batch.masked, table)
        small = self._embed_small(batch.items, positions)
        for index, block in enumerate(self.blocks):
            x = block(x, batch, last_only and index == len(self.blocks) - 1, small)
        return self.norm(x)  # type: ignore[no-any-return]

    def _positions(self, packing: Packing) -> Tensor | None:
        """The position of every event (T,), if the model uses it: computing it makes the host wait for a GPU."""
        return None if self.positions is None else packing.embedded_positions

    def _embed(
        self, items: Tensor, positions: Tensor | None, masked: Tensor | None = None, table: Tensor | None = None
    ) -> Tensor:
        x = (
            self.items(items) if table is None else embedding(items, table)
        ) * self.config.dim**0.5  # (T, D), of unit variance like the mixers' outputs
        if masked is not None:
            assert self.mask is not None
            x = x.index_copy(0, masked, self.mask.expand(len(masked), -1))
        if self.positions is not None:
            x = x + self.positions(positions)
        return self.dropout(x)  # type: ignore[no-any-return]

    def _embed_small(self, items: Tensor, positions: Tensor | None) -> Tensor | None:
        return None if self.small is None else self.dropout(self.small(items, positions))

    def table(self) -> Tensor:
        """The rows of all items, (V, D), or of this process's shard."""
        weight = self.items.weight
        return self.items.add_features(weight) if isinstance(self.items, FeaturedItems) else weight

    def folded(self) -> SequenceModel:
        """The same model without features: they are added into its item table. It shares all other weights with
        this."""
        if not isinstance(self.items, FeaturedItems):
            return self
        plain = copy.copy(self)
        with torch.no_grad():
            table = self.table()
        plain._modules = {**self._modules, "items": nn.Embedding(len(table), table.shape[1], _weight=table)}
        return plain

    @property
    def shard(self) -> ItemShard | None:
        """The part of the item table that this process holds, where it is cut into parts."""
        return self.items if isinstance(self.items, ItemShard) else None

    def parameter_count(self) -> int:
        """The number of parameters, of all processes together if the item table is cut into shards."""
        own = sum(parameter.numel() for parameter in self.parameters())
        elsewhere = self.shard.n_items - self.shard.num_embeddings if self.shard else 0
        return own + elsewhere * (self.config.dim + 1)

    def scores(self, batch: Batch) -> Tensor:
        """Scores of every item as the next one after each sequence, (S, V) float32."""
        return self.scores_of(self.hidden_after(batch), self.recent(batch))

    def hidden_after(self, batch: Batch) -> Tensor:
        """The hidden state that predicts the next item after each sequence, (S, D)."""
        return self(batch if self.mask is None else hide_next(batch), last_only=True)  # type: ignore[no-any-return]

    def recent(self, batch: Batch) -> Recent | None:
        """What a repeat head reads of a batch's histories, if there is one."""
        return None if self.repeats is None else Recent.of(batch)

    def scores_of(self, hidden: Tensor, recent: Recent | None = None) -> Tensor:
        """Scores of every item after hidden states (S, D), (S, V) float32. A model with a repeat head needs what is
        ``recent`` in the batch or the state of the same histories."""
        with torch.autocast(hidden.device.type, enabled=False):  # in half precision, scores that differ would tie
            hidden = hidden.to(self.bias.dtype)
            scores = torch.addmm(self.bias, hidden, self.table().T)
            if self.repeats is None:
                return scores
            if recent is None:
                raise TypeError("scores_of: a model with a repeat head needs `recent`, of the batch or of the state")
            return self.repeats.add_to(scores, hidden, recent, 0 if self.shard is None else self.shard.first)

    @property
    def most_events(self) -> int | None:
        """The events that a state can count: ``max_length`` where the mixer or the model has positions, else None."""
        mixer = MIXERS[self.config.mixer]
        return self.config.max_length if mixer.needs_positions or mixer.bounded else None

    def init_state(self, sequences: int, *, compact: bool = False) -> ModelState:
        """The state of sequences without events. ``compact`` asks for a smaller state if the mixer has one
        (:class:`hyenarec_kernels.nn.CompactState`)."""
        self._check_causal()
        nothing = torch.zeros(sequences, dtype=torch.int64, device=self.bias.device)
        blocks = tuple(block.mixer.init_state(sequences, compact=compact) for block in self._blocks())
        return ModelState(blocks, nothing, self._no_items(sequences))

    def prefill(self, batch: Batch, *, compact: bool = False) -> tuple[Tensor, ModelState]:
        """The hidden states (S, D) after whole histories, none of which may be empty, and the state for
        :meth:`step`."""
        self._check_causal()
        positions = self._positions(batch.packing)
        x, states = self._embed(batch.items, positions), []
        small = self._embed_small(batch.items, positions)
        for block in self._blocks():
            x, state = block.prefill(x, batch.packing, batch.timestamps, compact, small)
            states.append(state)
        packing, read = batch.packing, self._no_items(batch.packing.sequences)
        if read is not None:
            room = read.shape[1]
            last = packing.positions >= packing.lengths[packing.rows] - room
            read[packing.rows[last], packing.positions[last] % room] = batch.items[last]
        return self.norm(x[packing.last]), ModelState(tuple(states), packing.lengths, read)

    def step(self, items: Tensor, state: ModelState, timestamps: Tensor | None = None) -> tuple[Tensor, ModelState]:
        """Read the next event of every sequence, ``items`` (S,) at ``timestamps`` (S,): the hidden states after it,
        (S, D), and the new state. The given state may be overwritten: go on with the new one.

        Raises :class:`UserError` where a sequence has as many events as the model has positions.
        """
        if not torch.compiler.is_compiling():  # a compiled program cannot look at values: its caller checks them
            self.check_room(state)
        x, states = self._embed(items, state.events), []
        small = self._embed_small(items, state.events)
        for block, before in zip(self._blocks(), state.blocks, strict=True):
            x, after = block.step(x, before, timestamps, small)
            states.append(after)
        read = state.history
        if read is not None:
            read.scatter_(1, (state.events % read.shape[1])[:, None], items[:, None])
        return self.norm(x), ModelState(tuple(states), state.events + 1, read)

    def _no_items(self, sequences: int) -> Tensor | None:
        """The ``history`` of a state of sequences without events."""
        if self.repeats is None:
            return None
        return torch.zeros(sequences, self.repeats.room, dtype=torch.int64, device=self.bias.device)

    def check_room(self, state: ModelState) -> None:
        """Raises :class:`UserError` where a sequence has as many events as the model has positions."""
        most = self.most_events
        if most is not None and int(state.events.max()) >= most:
            raise UserError(f"step: mixer {self.config.mixer} has {most} positions (max_length), and all are taken")

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def _check_causal(self) -> None:
        if self.mask is not None:
            raise UserError(f"mixer {self.config.mixer} reads its whole history anew for every event: it has no state")
