"""SASRec of RecTools with attention and with HyenaMixer, by its own training, recommending and metrics."""

from time import perf_counter

import pandas as pd
from lightning_fabric import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG
from rectools.models import SASRecModel

from examples.hosts.common import Task, main
from hyenarec_kernels.integrations.rectools import HyenaSASRecLayers


def interactions(log: pd.DataFrame) -> pd.DataFrame:
    return log.assign(**{Columns.Weight: 1.0, Columns.Datetime: pd.to_datetime(log.timestamp, unit="s")})


def run(mixer: str, task: Task) -> tuple[float, float]:
    seed_everything(task.seed, verbose=False)
    options = {}
    if mixer == "hyena":  # what changes
        options = {"transformer_layers_type": HyenaSASRecLayers, "transformer_layers_kwargs": {"horizon": task.length}}
    model = SASRecModel(n_factors=64, n_heads=2, session_max_len=task.length, epochs=task.epochs, **options)
    dataset = Dataset.construct(interactions(task.train))
    start = perf_counter()
    model.fit(dataset)
    seconds = perf_counter() - start
    best = model.recommend(task.train.user_id.unique(), dataset, k=10, filter_viewed=not task.repeats)
    return NDCG(k=10, divide_by_achievable=True).calc(best, interactions(task.test)), seconds


if __name__ == "__main__":
    main(run)
