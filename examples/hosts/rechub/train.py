"""HSTUModel of torch-rechub with its own layers and with HyenaMixer, by its own data generator and trainer.

Its trainer tells accuracy alone, so NDCG@10 is computed here.
"""

import contextlib
import io
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from torch_rechub.basic.layers import HSTULayer
from torch_rechub.models.generative.hstu import HSTUModel
from torch_rechub.trainers.seq_trainer import SeqTrainer
from torch_rechub.utils.data import SequenceDataGenerator

from examples.hosts.common import Task, main, ndcg
from hyenarec_kernels.integrations import replace_attention
from hyenarec_kernels.integrations.rechub import HyenaHSTULayer


def sequences(log, task: Task) -> SequenceDataGenerator:
    """Each user's last events but one, padded on the left by 0, seconds before the newest, and the last event."""
    users = [user for _, user in log.groupby("user_id") if len(user) > 1]
    items, times = (np.zeros((len(users), task.length), dtype=np.int64) for _ in range(2))
    for row, user in enumerate(users):
        kept = user.iloc[:-1].tail(task.length)
        items[row, -len(kept) :] = kept.item_id + 1
        times[row, -len(kept) :] = kept.timestamp.iloc[-1] - kept.timestamp
    targets = np.array([user.item_id.iloc[-1] + 1 for user in users])
    positions = np.broadcast_to(np.arange(task.length), items.shape)
    return SequenceDataGenerator(items, positions, targets, times)


def run(mixer: str, task: Task) -> tuple[float, float]:
    torch.manual_seed(task.seed)
    model = HSTUModel(
        int(task.log.item_id.max()) + 2, d_model=64, n_heads=2, n_layers=2, dqk=32, dv=32, max_seq_len=task.length
    )
    if mixer == "hyena":  # what changes
        replace_attention(model, task.length, {HSTULayer: HyenaHSTULayer})
    [batches] = sequences(task.train, task).generate_dataloader(batch_size=128)
    [tests] = sequences(task.log, task).generate_dataloader(batch_size=128, shuffle=False)
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = SeqTrainer(model, optimizer_params={"lr": 2e-3}, n_epoch=task.epochs, model_path=folder)
        start = perf_counter()
        trainer.fit(batches)
        seconds = perf_counter() - start
    model.eval()
    ranks = []
    for items, _, times, targets in tests:
        with torch.no_grad():
            scores = model(items, times)[:, -1]  # (B, items)
        scores[:, 0] = -torch.inf
        if not task.repeats:
            scores.scatter_(1, items, -torch.inf)
        ranks.append((scores > scores.gather(1, targets[:, None])).sum(1).numpy())
    return ndcg(np.concatenate(ranks)), seconds


if __name__ == "__main__":
    main(run)
