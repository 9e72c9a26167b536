"""A model that packs sequences as HSTU of Meta's generative-recommenders does, with attention and with HyenaMixer.

That repository is no package, so this is a small model in its shape; in HSTU itself, HyenaUnit replaces
SequentialTransductionUnitJagged in the same way.
"""

from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm, scaled_dot_product_attention

from examples.hosts.common import Task, main, ndcg
from hyenarec_kernels.integrations import replace_attention
from hyenarec_kernels.integrations.jagged import HyenaUnit

DIM, HEADS, DROPOUT, BATCH = 64, 2, 0.2, 64


class AttentionUnit(nn.Module):
    """Causal attention over packed sequences, which it pads and packs again."""

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
        self.items, self.positions = nn.Embedding(items, DIM), nn.Embedding(length, DIM)
        nn.init.normal_(self.items.weight, std=0.1)
        nn.init.normal_(self.positions.weight, std=0.1)
        self.units = nn.ModuleList(AttentionUnit() for _ in range(2))

    def forward(self, events: Tensor, offsets: Tensor) -> Tensor:
        """Scores (T, items) after each of T packed events."""
        place = torch.arange(len(events)) - offsets[:-1].repeat_interleave(offsets.diff())
        x = self.items(events) + self.positions(place)
        past = torch.ones(self.positions.num_embeddings, self.positions.num_embeddings).tril()
        for unit in self.units:
            x, _ = unit(x, offsets, all_timestamps=None, invalid_attn_mask=past)
        return layer_norm(x, x.shape[-1:]) @ self.items.weight.T


def packed(histories: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat(histories), torch.tensor([0, *np.cumsum([len(history) for history in histories])])


def run(mixer: str, task: Task) -> tuple[float, float]:
    torch.manual_seed(task.seed)
    users = [torch.tensor(user.to_list()[-task.length - 1 :]) for _, user in task.log.groupby("user_id").item_id]
    model = NextItem(int(task.log.item_id.max()) + 1, task.length)
    if mixer == "hyena":  # what changes
        replace_attention(model, task.length, {AttentionUnit: HyenaUnit.like})
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    start = perf_counter()
    for _ in range(task.epochs):
        for chosen in torch.randperm(len(users)).split(BATCH):
            events, offsets = packed([users[row][:-2] for row in chosen if len(users[row]) > 2])
            targets, _ = packed([users[row][1:-1] for row in chosen if len(users[row]) > 2])
            loss = cross_entropy(model(events, offsets), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    seconds = perf_counter() - start
    model.eval()
    events, offsets = packed([user[:-1] for user in users if len(user) > 1])
    targets = torch.stack([user[-1] for user in users if len(user) > 1])
    with torch.no_grad():
        scores = model(events, offsets)[offsets[1:] - 1]  # (users, items)
    if not task.repeats:
        rows = torch.arange(len(targets)).repeat_interleave(offsets.diff())
        scores[rows, events] = -torch.inf
    return ndcg((scores > scores.gather(1, targets[:, None])).sum(1).numpy()), seconds


if __name__ == "__main__":
    main(run)
