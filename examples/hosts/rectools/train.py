"""SASRec of RecTools with attention and with HyenaMixer, using its own training, recommending and metrics."""

import pandas as pd
from lightning_fabric import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG
from rectools.models import SASRecModel

from examples.hosts.common import Progress, Task, main
from hyenarec_kernels.integrations.rectools import HyenaSASRecLayers


def interactions(log: pd.DataFrame) -> pd.DataFrame:
    return log.assign(**{Columns.Weight: 1.0, Columns.Datetime: pd.to_datetime(log.timestamp, unit="s")})


def run(mixer: str, task: Task) -> tuple[float, Progress]:
    seed_everything(task.seed, verbose=False)
    options = {}
    if mixer == "hyena":  # what changes
        options = {"transformer_layers_type": HyenaSASRecLayers, "transformer_layers_kwargs": {"horizon": task.length}}
    model = SASRecModel(n_factors=64, n_heads=2, session_max_len=task.length, batch_size=64, lr=2e-3, **options)

    def evaluate(later: int) -> float:
        known, asked = Dataset.construct(interactions(task.before(later))), (task.test, task.validation)[later]
        users = asked.user_id[asked.user_id.isin(task.train.user_id)]
        best = model.recommend(users, known, k=10, filter_viewed=not task.repeats)
        return NDCG(k=10, divide_by_achievable=True).calc(best, interactions(asked[asked.user_id.isin(users)]))

    train = Dataset.construct(interactions(task.train))
    progress = Progress(task, lambda: model.torch_model)
    for _ in progress.until_best(lambda: evaluate(1)):
        model.fit_partial(train, min_epochs=1, max_epochs=1)
    progress.restore()
    return evaluate(0), progress


if __name__ == "__main__":
    main(run)
