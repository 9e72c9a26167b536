"""Llama of transformers with attention and with HyenaMixer, using its own trainer."""

from collections.abc import Callable
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments, set_seed

from examples.hosts.common import Progress, Task, main
from hyenarec_kernels.integrations.transformers import HyenaConfig, HyenaForCausalLM


def build(mixer: str, items: int, length: int) -> LlamaForCausalLM:
    sizes = {
        "vocab_size": items + 1, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "max_position_embeddings": length, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
        "tie_word_embeddings": True, "attention_dropout": 0.1,
    }  # fmt: skip
    if mixer == "hyena":  # what changes
        return HyenaForCausalLM(HyenaConfig(**sizes, horizon=length))
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))


def batch(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Histories (B, L), left-padded with 0, with the mask and the labels that the library expects."""
    ids = torch.stack([row["items"] for row in rows])
    ids = ids[:, ids.any(0)]
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


class EarlyStopping(TrainerCallback):
    """Stops the trainer when epochs no longer improve."""

    def __init__(self, progress: Progress, validate: Callable[[], float]) -> None:
        self.progress, self.validate = progress, validate

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self.progress.trained()
        control.should_training_stop = self.progress.validated(self.validate())


def run(mixer: str, task: Task) -> tuple[float, Progress]:
    set_seed(task.seed)
    model = build(mixer, int(task.log.item_id.max()) + 1, task.length)

    @torch.no_grad()
    def evaluate(later: int) -> float:
        ids = task.histories(later)[:, -task.length :]
        training = model.training
        model.eval()
        scores = model(ids, (ids != 0).long(), use_cache=False, logits_to_keep=1).logits[:, 0]
        model.train(training)
        return task.ndcg(scores, later)

    progress = Progress(task, lambda: model)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=task.epochs, per_device_train_batch_size=64, learning_rate=2e-3,
            lr_scheduler_type="constant", remove_unused_columns=False, report_to=[], logging_strategy="no",
            save_strategy="no", disable_tqdm=True, use_cpu=True, seed=task.seed,
        )  # fmt: skip
        train = [{"items": row} for row in task.histories(1)[:, -task.length :]]
        stop = EarlyStopping(progress, lambda: evaluate(1))
        Trainer(model, arguments, data_collator=batch, train_dataset=train, callbacks=[stop]).train()
    progress.restore()
    return evaluate(0), progress


if __name__ == "__main__":
    main(run, epochs=30)  # after 10, HyenaMixer is behind
