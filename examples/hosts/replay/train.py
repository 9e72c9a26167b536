"""SasRec of RePlay with attention and with HyenaMixer, using its own data module, trainer and metrics."""

from pathlib import Path
from tempfile import TemporaryDirectory

import lightning
import pandas as pd
from replay.data import FeatureHint, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import ComputeMetricsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.lightning.postprocessor import SeenItemsFilter
from replay.nn.sequential import SasRec
from replay.nn.transform.template import make_default_sasrec_transforms

from examples.hosts.common import Progress, Task, main
from hyenarec_kernels.integrations.replay import hyena_sasrec


def schema(items: int) -> TensorSchema:
    item = TensorFeatureInfo(
        "item_id",
        FeatureType.CATEGORICAL,
        is_seq=True,
        feature_hint=FeatureHint.ITEM_ID,
        embedding_dim=64,
        padding_value=items,
        cardinality=items,
    )
    return TensorSchema([item])


def data_module(task: Task, items: int, folder: Path) -> ParquetModule:
    """RePlay reads Parquet files that have one row per user, with the user's events as a list."""

    def lists(log: pd.DataFrame) -> pd.Series:
        return log.groupby("user_id").item_id.agg(list)

    lists(task.train).to_frame().to_parquet(folder / "train.parquet", index=False)
    for name, later, asked in (("validate", 1, task.validation), ("test", 0, task.test)):
        rows = lists(task.before(later))
        table = pd.DataFrame({"item_id": rows, "seen_ids": rows, "ground_truth": lists(asked)})
        table.loc[task.train.user_id.unique()].to_parquet(folder / f"{name}.parquet", index=False)
    history = {"shape": task.length, "padding": items}
    asked = {
        "item_id": history,
        "ground_truth": {"shape": 1, "padding": -1},
        "seen_ids": {"shape": int(task.log.groupby("user_id").size().max()), "padding": -2},
    }
    return ParquetModule(
        batch_size=128,
        metadata={"train": {"item_id": history | {"shape": task.length + 1}}, "validate": asked, "test": asked},
        transforms=make_default_sasrec_transforms(schema(items)),
        train_path=str(folder / "train.parquet"),
        validate_path=str(folder / "validate.parquet"),
        test_path=str(folder / "test.parquet"),
    )


class EarlyStopping(lightning.Callback):
    """Stops the trainer when epochs no longer improve. It has to come after the callback that computes the metrics."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_validation_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.progress.trained()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        trainer.should_stop = self.progress.validated(float(trainer.callback_metrics["ndcg@10"]))


def run(mixer: str, task: Task) -> tuple[float, Progress]:
    lightning.seed_everything(task.seed, verbose=False)
    items = int(task.log.item_id.max()) + 1
    sizes = {"embedding_dim": 64, "num_blocks": 2, "max_sequence_length": task.length, "dropout": 0.2}
    if mixer == "hyena":  # what changes
        model = hyena_sasrec(schema(items), **sizes)
    else:
        model = SasRec.from_params(schema(items), num_heads=2, **sizes)
    metrics = ComputeMetricsCallback(
        ["ndcg"], [10], [] if task.repeats else [SeenItemsFilter(items)], items, verbose=False
    )
    progress = Progress(task, lambda: model)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    trainer = lightning.Trainer(
        max_epochs=task.epochs, callbacks=[metrics, EarlyStopping(progress)], accelerator="cpu", **quiet
    )
    module = LightningModule(model, OptimizerFactory(learning_rate=2e-3))
    with TemporaryDirectory() as folder:
        data = data_module(task, items, Path(folder))
        trainer.fit(module, data)
        progress.restore()
        [result] = trainer.test(module, data, verbose=False)
    return result["ndcg@10"], progress


if __name__ == "__main__":
    main(run)
