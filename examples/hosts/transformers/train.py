"""Llama of transformers with attention and with HyenaMixer, by its own trainer."""

from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from examples.hosts.common import Task, main, ndcg
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


def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Histories (B, L), padded on the left by 0, with the mask and the labels that the library expects."""
    ids = torch.nn.utils.rnn.pad_sequence([row["items"] for row in rows], batch_first=True, padding_side="left")
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def run(mixer: str, task: Task) -> tuple[float, float]:
    set_seed(task.seed)
    users = [user.item_id.to_numpy() + 1 for _, user in task.log.groupby("user_id") if len(user) > 1]
    train = [{"items": torch.tensor(user[:-1][-task.length :])} for user in users]
    targets = torch.tensor([[user[-1]] for user in users])
    model = build(mixer, int(task.log.item_id.max()) + 1, task.length)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=task.epochs, per_device_train_batch_size=64, learning_rate=2e-3,
            lr_scheduler_type="constant", remove_unused_columns=False, report_to=[], logging_strategy="no",
            save_strategy="no", disable_tqdm=True, use_cpu=True, seed=task.seed,
        )  # fmt: skip
        trainer = Trainer(model, arguments, data_collator=padded, train_dataset=train)
        start = perf_counter()
        trainer.train()
        seconds = perf_counter() - start
    model.eval()
    tests = padded(train)
    with torch.no_grad():
        scores = model(tests["input_ids"], tests["attention_mask"], use_cache=False, logits_to_keep=1).logits[:, 0]
    scores[:, 0] = -torch.inf
    if not task.repeats:
        scores.scatter_(1, tests["input_ids"], -torch.inf)
    ranks = (scores > scores.gather(1, targets)).sum(1)
    return ndcg(np.asarray(ranks)), seconds


if __name__ == "__main__":
    main(run, epochs=30)  # after 10, HyenaMixer is behind
