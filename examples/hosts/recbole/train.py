"""SASRec of RecBole with attention and with HyenaMixer, using its own data sets, trainer and evaluation."""

import os
from contextlib import chdir
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

from examples.hosts.common import Progress, Task, main
from hyenarec_kernels.integrations.recbole import SASREC_SETTINGS, HyenaSASRec

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # RecBole's checkpoints hold its Config, too


def configured(model: type, task: Task, folder: Path) -> Config:
    """RecBole's settings for ``model``, and the log in a file beside them. One checkpoint fits in ``folder``, too."""
    (folder / "log").mkdir()
    columns = ["user_id:token", "item_id:token", "timestamp:float"]
    task.log.set_axis(columns, axis=1).to_csv(folder / "log/log.inter", sep="\t", index=False)
    settings = {
        "data_path": str(folder), "checkpoint_dir": str(folder), "show_progress": False, "use_gpu": False,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "MAX_ITEM_LIST_LENGTH": task.length,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}, "eval_batch_size": 256,
        "metrics": ["NDCG"], "topk": [10], "valid_metric": "NDCG@10", "repeatable": True,
        "loss_type": "CE", "train_neg_sample_args": None, "epochs": task.epochs, "seed": task.seed,
        "stopping_step": task.patience - 1,
    }  # fmt: skip
    return Config(model, "log", config_file_list=[SASREC_SETTINGS], config_dict=settings)


def run(mixer: str, task: Task) -> tuple[float, Progress]:
    getLogger().setLevel("ERROR")
    model_class = HyenaSASRec if mixer == "hyena" else SASRec  # what changes
    with TemporaryDirectory() as folder, chdir(folder):  # its trainer writes to the current folder
        config = configured(model_class, task, Path(folder))
        init_seed(task.seed, reproducibility=True)
        train_data, validation_data, test_data = data_preparation(config, create_dataset(config))
        trainer = Trainer(config, model_class(config, train_data.dataset))
        progress = Progress(task, lambda: trainer.model)

        def epoch_ended(epoch: int, value: float) -> None:
            progress.trained()  # counts validation too, as RecBole's trainer does not report when it starts
            progress.validated(value)

        trainer.fit(train_data, validation_data, verbose=False, saved=False, callback_fn=epoch_ended)
        progress.restore()
        result = trainer.evaluate(test_data, load_best_model=False)
    return result["ndcg@10"], progress


if __name__ == "__main__":
    # RecBole makes a training example of each event with its history, so the log is small.
    main(run, epochs=4, length=20, users=100)
