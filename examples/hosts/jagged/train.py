"""A model that packs sequences as HSTU of Meta's generative-recommenders does, with attention and with HyenaMixer.

That repository is no package, so this is a small model in its shape; in HSTU itself, HyenaUnit replaces
SequentialTransductionUnitJagged in the same way.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm, scaled_dot_product_attention

from examples.hosts.common import Progress, Task, main
from hyenarec_kernels.integrations import replace_attention
from hyenarec_kernels.integrations.jagged import HyenaUnit

DIM, HEADS, DROPOUT, BATCH = 64, 2, 0.2, 64


class AttentionUnit(nn.Module):
    """Causal attention over packed sequences, which it pads and then packs again."""

    def __init__(self) -> None:
        super().__init__()
        self._embedding_dim, self._dropout_ratio = DIM, DROPOUT  # as HSTU's units have them
        self.qkv, self.out, self.dropout = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, x_offsets: Tensor, all_timestamps: Tensor, invalid_attn_mask: Tensor):
        real = torch.arange(len(invalid_attn_mask)) < x_offsets.diff()[:, None]  # (B, L)
        padded = x.new_zeros(*real.shape, 3 * DIM).masked_scatter(
            real[..., None], self.qkv(layer_norm(x, x.shape[-1:]))
        )
        q, k, v = padded.view(*real.shape, 3 * HEADS, -1).transpose(1, 2).chunk(3, 1)  # (B, HEADS, L, DIM / HEADS)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return x + self.dropout(self.out(mixed[real])), None


class NextItem(nn.Module):
    def __init__(self, items: int, length: int) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(items + 1, DIM), nn.Embedding(length, DIM)
        nn.init.normal_(self.items.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.1)
        self.units = nn.ModuleList(AttentionUnit() for _ in range(2))

    def forward(self, events: Tensor, offsets: Tensor) -> Tensor:
        """Outputs (T, D) after each of T packed events, numbered from 1."""
        place = torch.arange(len(events)) - offsets[:-1].repeat_interleave(offsets.diff())
        x = self.items(events) + self.positions(place)
        past = torch.ones(self.positions.num_embeddings, self.positions.num_embeddings).tril()
        for unit in self.units:
            x, _ = unit(x, offsets, all_timestamps=None, invalid_attn_mask=past)
        return layer_norm(x, x.shape[-1:])


def packed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The events of histories (B, L) without padding, one history after the other, and the offsets at which they begin
    and end."""
    return rows[rows != 0], torch.nn.functional.pad((rows != 0).sum(1).cumsum(0), (1, 0))


def run(mixer: str, task: Task) -> tuple[float, Progress]:
    torch.manual_seed(task.seed)
    model = NextItem(int(task.log.item_id.max()) + 1, task.length)
    if mixer == "hyena":  # what changes
        replace_attention(model, task.length, {AttentionUnit: HyenaUnit.like})
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    @torch.no_grad()
    def evaluate(later: int) -> float:
        model.eval()
        events, offsets = packed(task.histories(later)[:, -task.length :])
        return task.ndcg(model(events, offsets)[offsets[1:] - 1] @ model.items.weight.T, later)

    train = task.histories(1)[:, -task.length - 1 :]
    train = train[train[:, -2] != 0]  # of two events or more
    progress = Progress(task, lambda: model)
    for _ in progress.until_best(lambda: evaluate(1)):
        model.train()
        for rows in torch.randperm(len(train)).split(BATCH):
            targets = train[rows, 1:].masked_fill(train[rows, :-1] == 0, 0)
            loss = cross_entropy(model(*packed(train[rows, :-1])) @ model.items.weight.T, targets[targets != 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    progress.restore()
    return evaluate(0), progress


if __name__ == "__main__":
    main(run)
