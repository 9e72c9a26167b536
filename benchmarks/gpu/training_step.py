"""A whole training step of the recommender on a GPU, on random packed batches: no log is read, nothing is printed.

It does what :meth:`hyenarec.training.Trainer.step` does in bfloat16 with the sampled softmax: embedding, two blocks,
loss, backward, clipping, AdamW.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.gpu.clocks import Clock, figures
from benchmarks.gpu.contestants import only

ITEMS, NEGATIVES, CLIP_NORM = 10_000, 128, 5.0
NAMES = {"hyena": "HyenaRec", "attention": "SASRec on FlashAttention"}


def import_recommender() -> None:
    """Makes ``hyenarec`` importable from this checkout, even without the libraries that it prints and saves with."""
    checkout = str(Path(__file__).parents[2] / "python")
    if checkout not in sys.path:
        sys.path.append(checkout)
    for name, parts in {"rich": [], "safetensors": ["safetensors.numpy"]}.items():
        try:
            import_module(name)
        except ModuleNotFoundError:
            for missing in (name, *parts):
                sys.modules[missing] = stand_in(missing)


def stand_in(name: str) -> ModuleType:
    """A module from which anything can be imported, but nothing works."""

    def give(attribute: str) -> type[Exception]:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return type(attribute, (Exception,), {})

    module = ModuleType(name)
    module.__dict__["__getattr__"] = give
    return module


def step_row(system: str, tokens: int, length: int, clock: Clock, seconds: float) -> Iterator[dict[str, Any]]:
    """Sequences have half to all of ``length`` events; ``training`` is the whole step, including the optimiser."""
    import_recommender()
    from hyenarec.config import ModelConfig
    from hyenarec.data.batches import Batch
    from hyenarec.losses import sampled_softmax
    from hyenarec.model import SequenceModel
    from hyenarec.packing import Packing

    model = SequenceModel(ModelConfig(mixer=system, max_length=length), ITEMS).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True)
    lengths = torch.randint(length // 2, length + 1, (max(tokens * 4 // (3 * length), 1),))
    packing = Packing.from_lengths(lengths).to(torch.device("cuda"))
    items, targets = (torch.randint(ITEMS, (int(lengths.sum()),), device="cuda") for _ in range(2))
    batch = Batch(items, packing)
    log_q = torch.full((ITEMS,), -float(torch.tensor(ITEMS).log()), device="cuda")
    _ = packing.rows, packing.positions  # cached from here on: computing them waits for the device

    def step() -> None:
        negatives = torch.randint(ITEMS, (NEGATIVES,), device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            loss = sampled_softmax(model(batch), model.items.weight, model.bias, targets, negatives, log_q)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()

    yield {"events": len(items)}
    with only(None):
        yield from figures({"training": step}, clock, seconds)
