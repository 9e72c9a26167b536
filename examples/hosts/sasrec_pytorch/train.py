"""A model in the shape of SASRec.pytorch's (pmixer/SASRec.pytorch, which is no package), with attention and HyenaMixer.

It keeps what matters of that model: queries are normalised keys, tensors are (L, B, D), attention gets no padding mask,
and every matrix is initialised again after construction.
"""

import torch
from torch import Tensor, nn

from examples.hosts.common import Progress, Task, main
from hyenarec_kernels.integrations import replace_attention

DIM, BLOCKS, DROPOUT = 64, 2, 0.2


class SASRec(nn.Module):
    def __init__(self, items: int, length: int) -> None:
        super().__init__()
        self.item_emb = nn.Embedding(items + 1, DIM, padding_idx=0)
        self.pos_emb = nn.Embedding(length + 1, DIM, padding_idx=0)
        self.dropout = nn.Dropout(DROPOUT)
        self.attention_norms = nn.ModuleList(nn.LayerNorm(DIM, eps=1e-8) for _ in range(BLOCKS))
        self.attention_layers = nn.ModuleList(nn.MultiheadAttention(DIM, 1, DROPOUT) for _ in range(BLOCKS))
        self.forward_norms = nn.ModuleList(nn.LayerNorm(DIM, eps=1e-8) for _ in range(BLOCKS))
        self.forward_layers = nn.ModuleList(
            nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM), nn.Dropout(DROPOUT))
            for _ in range(BLOCKS)
        )
        self.last_norm = nn.LayerNorm(DIM, eps=1e-8)

    def forward(self, events: Tensor) -> Tensor:
        """Outputs (B, L, D) of histories (B, L), left-padded with 0."""
        length = events.shape[1]
        position = torch.arange(1, length + 1) * (events != 0)
        seqs = self.dropout(self.item_emb(events) * DIM**0.5 + self.pos_emb(position))
        future = ~torch.ones(length, length, dtype=torch.bool).tril()
        for i in range(BLOCKS):
            seqs = seqs.transpose(0, 1)  # (L, B, D)
            queries = self.attention_norms[i](seqs)
            mixed, _ = self.attention_layers[i](queries, seqs, seqs, attn_mask=future)
            seqs = self.forward_norms[i]((queries + mixed).transpose(0, 1))
            seqs = seqs + self.forward_layers[i](seqs)
        return self.last_norm(seqs)


def build(mixer: str, items: int, length: int) -> SASRec:
    model = SASRec(items, length)
    if mixer == "hyena":  # what changes: no more than this line
        replace_attention(model, length, query_only=True)
    for parameter in model.parameters():  # as main.py does; a mixer's start survives it
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter)
    return model


def run(mixer: str, task: Task) -> tuple[float, Progress]:
    torch.manual_seed(task.seed)
    model = build(mixer, int(task.log.item_id.max()) + 1, task.length)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.9, 0.98))

    @torch.no_grad()
    def evaluate(later: int) -> float:
        model.eval()
        return task.ndcg(model(task.histories(later)[:, -task.length :])[:, -1] @ model.item_emb.weight.T, later)

    train = task.histories(1)[:, -task.length - 1 :]
    progress = Progress(task, lambda: model)
    for _ in progress.until_best(lambda: evaluate(1)):
        model.train()
        for rows in torch.randperm(len(train)).split(64):
            events, targets = train[rows, :-1], train[rows, 1:]
            targets = targets.masked_fill(events == 0, 0)
            scores = model(events)[targets != 0] @ model.item_emb.weight.T  # (T, items + 1)
            loss = nn.functional.cross_entropy(scores, targets[targets != 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    progress.restore()
    return evaluate(0), progress


if __name__ == "__main__":
    main(run, epochs=30)  # after 10, HyenaMixer is behind
