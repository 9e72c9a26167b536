"""SasRec of RePlay with attention and with HyenaMixer, by its own data module, trainer and metrics."""

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import lightning
from replay.data import FeatureHint, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorSchema
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import ComputeMetricsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.lightning.postprocessor import SeenItemsFilter
from replay.nn.sequential import SasRec
from replay.nn.transform.template import make_default_sasrec_transforms

from examples.hosts.common import Task, main
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
    """RePlay reads Parquet files of a row a user, whose events are a list."""
    rows = task.train.groupby("user_id").item_id.agg(list).to_frame()
    rows.to_parquet(folder / "train.parquet", index=False)
    last = task.test.set_index("user_id").item_id.map(lambda item: [item])
    rows.assign(ground_truth=last, seen_ids=rows.item_id).dropna().to_parquet(folder / "test.parquet", index=False)
    history = {"shape": task.length, "padding": items}
    return ParquetModule(
        batch_size=128,
        metadata={
            "train": {"item_id": history | {"shape": task.length + 1}},
            "test": {
                "item_id": history,
                "ground_truth": {"shape": 1, "padding": -1},
                "seen_ids": {"shape": int(rows.item_id.map(len).max()), "padding": -2},
            },
        },
        transforms=make_default_sasrec_transforms(schema(items)),
        train_path=str(folder / "train.parquet"),
        test_path=str(folder / "test.parquet"),
    )


def run(mixer: str, task: Task) -> tuple[float, float]:
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
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=task.epochs, callbacks=[metrics], limit_val_batches=0, accelerator="cpu", **quiet
    )
    module = LightningModule(model, OptimizerFactory(learning_rate=2e-3))
    with TemporaryDirectory() as folder:
        data = data_module(task, items, Path(folder))
        start = perf_counter()
        trainer.fit(module, data)
        seconds = perf_counter() - start
        [result] = trainer.test(module, data, verbose=False)
    return result["ndcg@10"], seconds


if __name__ == "__main__":
    main(run)
