"""HSTUModel of torch-rechub with its own layers and with HyenaMixer, using its own data generator and trainer.

Its trainer reports accuracy alone, so NDCG@10 is computed here.
"""

import contextlib
import io

import numpy as np
import torch
from torch_rechub.basic.layers import HSTULayer
from torch_rechub.models.generative.hstu import HSTUModel
from torch_rechub.trainers.seq_trainer import SeqTrainer
from torch_rechub.utils.data import SequenceDataGenerator

from examples.hosts.common import Progress, Task, main
from hyenarec_kernels.integrations import replace_attention
from hyenarec_kernels.integrations.rechub import HyenaHSTULayer


def sequences(task: Task, later: int) -> SequenceDataGenerator:
    """For each user the last events before the one that ``later`` events follow, left-padded with 0; how many seconds
    each lies before the newest; and the event that follows, as the target."""
    users = [user for _, user in task.log.groupby("user_id") if len(user) > max(2, 1 + later)]
    items, times = (np.zeros((len(users), task.length), dtype=np.int64) for _ in range(2))
    for row, user in enumerate(users):
        kept = user.iloc[: len(user) - 1 - later].tail(task.length)
        items[row, -len(kept) :] = kept.item_id + 1
        times[row, -len(kept) :] = kept.timestamp.iloc[-1] - kept.timestamp
    targets = np.array([user.item_id.iloc[-1 - later] + 1 for user in users])
    positions = np.broadcast_to(np.arange(task.length), items.shape)
    return SequenceDataGenerator(items, positions, targets, times)


def run(mixer: str, task: Task) -> tuple[float, Progress]:
    torch.manual_seed(task.seed)
    model = HSTUModel(
        int(task.log.item_id.max()) + 2, d_model=64, n_heads=2, n_layers=2, dqk=32, dv=32, max_seq_len=task.length
    )
    if mixer == "hyena":  # what changes
        replace_attention(model, task.length, {HSTULayer: HyenaHSTULayer})

    @torch.no_grad()
    def evaluate(later: int) -> float:
        model.eval()
        [tests] = sequences(task, later).generate_dataloader(batch_size=128, shuffle=False)
        scores = torch.cat([model(items, times)[:, -1] for items, _, times, _ in tests])
        return task.ndcg(scores, later)

    [train] = sequences(task, 2).generate_dataloader(batch_size=128)
    progress = Progress(task, lambda: model)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = SeqTrainer(model, optimizer_params={"lr": 2e-3})
        for _ in progress.until_best(lambda: evaluate(1)):
            trainer.train_one_epoch(train)
    progress.restore()
    return evaluate(0), progress


if __name__ == "__main__":
    main(run)
