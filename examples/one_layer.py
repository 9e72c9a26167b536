"""HyenaMixer in a small model: one batch padded, the same batch packed, and the same events one by one."""

import torch
from torch import Tensor, nn

from hyenarec_kernels.nn import HyenaMixer


class Model(nn.Module):
    """Item embeddings, one mixer with a residual, and a score for every item as the next one."""

    def __init__(self, items: int, dim: int = 32, horizon: int = 64) -> None:
        super().__init__()
        self.items = nn.Embedding(items, dim)
        self.norm = nn.LayerNorm(dim)
        self.mixer = HyenaMixer(dim, horizon)

    def forward(self, events: Tensor, **layout: Tensor) -> Tensor:
        x = self.items(events)  # (B, L, D), or (T, D) where sequences are packed
        return (x + self.mixer(self.norm(x), **layout)) @ self.items.weight.T  # (..., items)


def main() -> None:
    torch.manual_seed(0)
    model = Model(items=100)
    lengths = torch.tensor([7, 3, 20])
    events = torch.randint(100, (3, 20))  # (B, L); values beyond a row's length are padding and may be anything

    padded = model(events, lengths=lengths)  # (3, 20, 100)
    padded.logsumexp(-1).mean().backward()  # gradients as for any module

    real = torch.arange(20) < lengths[:, None]  # (B, L)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))  # 0, 7, 10, 30
    packed = model(events[real], cu_seqlens=cu_seqlens)  # (30, 100), no padding computed
    print("packed and padded differ by at most", float((packed - padded[real]).detach().abs().max()))

    with torch.inference_mode():
        x = model.items(events[2])  # the third sequence, (20, D)
        state = model.mixer.init_state(batch_size=1)
        for t in range(20):
            mixed, state = model.mixer.step(model.norm(x[t : t + 1]), state)  # (1, D), from the state alone
        scores = (x[-1:] + mixed) @ model.items.weight.T  # (1, 100)
    print("streamed and padded differ by at most", float((scores - padded[2, 19]).detach().abs().max()))


if __name__ == "__main__":
    main()
