"""The decoder for Hugging Face transformers: generation with its cache, saving, packing, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", minversion="5.24")

import transformers

from hyenarec_kernels.integrations.transformers import HyenaConfig, HyenaForCausalLM
from hyenarec_kernels.nn import HyenaMixer

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "horizon": 7,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def model(**changes: Any) -> Any:
    """A small model whose mixers are far from their initial values, so that they affect the output."""
    torch.manual_seed(0)
    made = HyenaForCausalLM(HyenaConfig(**SIZES | changes)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "mixer" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def prompts() -> tuple[Tensor, Tensor]:
    """Left-padded prompts of 9, 4 and 1 events, and their mask."""
    torch.manual_seed(1)
    mask = (torch.arange(9) >= 9 - torch.tensor([[9], [4], [1]])).long()
    return torch.randint(3, 50, (3, 9)) * mask, mask


@pytest.mark.parametrize(
    "options",
    [
        {}, {"do_sample": True, "temperature": 2.0}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2},
        {"cache_implementation": "static"}, {"cache_implementation": "offloaded"},
    ],
    ids=str,
)  # fmt: skip
def test_generation_with_the_cache_is_generation_without_it(options: dict[str, Any]) -> None:
    ids, mask = prompts()
    lm = model()

    def generate(**more: Any) -> Any:
        torch.manual_seed(2)
        return lm.generate(
            ids, attention_mask=mask, max_new_tokens=20, min_new_tokens=20, output_logits=True,
            return_dict_in_generate=True, **more,
        )  # fmt: skip

    cached = generate(**options)
    plain = generate(use_cache=False, **{k: v for k, v in options.items() if k != "cache_implementation"})
    assert torch.equal(cached.sequences, plain.sequences)
    assert len(cached.logits) == len(plain.logits) == 20
    for a, b in zip(cached.logits, plain.logits, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_padding_on_the_left_changes_nothing() -> None:
    ids, mask = prompts()
    lm = model()
    together = lm.generate(ids, attention_mask=mask, max_new_tokens=12, min_new_tokens=12)
    for row, length in enumerate((9, 4, 1)):
        alone = lm.generate(ids[row : row + 1, -length:], max_new_tokens=12, min_new_tokens=12)
        assert torch.equal(together[row, -12:], alone[0, -12:])


@torch.no_grad()
def test_events_may_follow_one_by_one_or_many_at_once() -> None:
    lm, ids = model(), torch.randint(3, 50, (2, 14))
    want = lm(ids, use_cache=False).logits
    cache, got = None, []
    for chunk in ids.split([4, 1, 1, 5, 3], 1):
        out = lm(chunk, cache=cache)
        cache = out.cache
        got.append(out.logits)
    assert cache is not None and cache.get_seq_length() == 14
    torch.testing.assert_close(torch.cat(got, 1), want, rtol=1e-4, atol=1e-5)
    cache.reset()
    torch.testing.assert_close(lm(ids, cache=cache).logits, want)


@torch.no_grad()
def test_bfloat16_with_the_cache() -> None:
    lm, ids = model().bfloat16(), torch.randint(3, 50, (2, 14))
    want = lm(ids, use_cache=False).logits
    assert want.dtype == torch.bfloat16
    cache = lm(ids[:, :8]).cache
    got = torch.cat([lm(event, cache=cache).logits for event in ids[:, 8:].split(1, 1)], 1)
    assert (got - want[:, 8:]).abs().max() < 0.02 * want.abs().max()


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    lm, ids = model(mixer_options={"gate": "silu", "terms": 5}), torch.randint(3, 50, (2, 14))
    lm.save_pretrained(tmp_path)
    auto = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(auto) is HyenaForCausalLM and auto.config.horizon == 7
    assert torch.equal(auto(ids).logits, lm(ids).logits)
    half = HyenaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    scale = lm(ids).logits.abs().max()
    assert (half(ids).logits - lm(ids).logits).abs().max() < 0.02 * scale
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        HyenaForCausalLM.from_pretrained(tmp_path, horizon=8)


@pytest.mark.parametrize("lacking", ["short_weight", "filters.0.weight", "filters.0.log_rate", "filters.0.scale"])
def test_what_a_checkpoint_lacks_is_drawn_and_the_rest_is_kept(lacking: str, tmp_path: Path) -> None:
    lm = model()
    weights = lm.state_dict()
    lacking = f"model.layers.1.self_attn.mixer.{lacking}"
    lm.save_pretrained(tmp_path, state_dict={name: t for name, t in weights.items() if name != lacking})
    loaded = HyenaForCausalLM.from_pretrained(tmp_path).state_dict()
    drawn = loaded.pop(lacking)
    fresh = HyenaMixer(16, 7).state_dict()[lacking.partition("mixer.")[2]]
    assert 0.5 * fresh.norm() <= drawn.norm() <= 2 * fresh.norm()  # as a mixer draws it; `weights` are far from that
    assert all(torch.equal(t, weights[name]) for name, t in loaded.items())


@torch.no_grad()
def test_a_filter_of_another_shape_is_drawn(tmp_path: Path) -> None:
    model(mixer_options={"window": False}).save_pretrained(tmp_path)
    ids = torch.randint(3, 50, (2, 14))
    options: dict[str, Any]
    for options in ({"window": True}, {"window": False, "terms": 5}, {"window": False, "bidirectional": True}):
        lm = HyenaForCausalLM.from_pretrained(tmp_path, mixer_options=options, ignore_mismatched_sizes=True)
        for name, values in lm.state_dict().items():
            assert "mixer" not in name or not values.numel() or values.abs().max() < 10, name
        assert lm.eval()(ids).logits.isfinite().all()


def test_mixers_start_as_they_do_alone() -> None:
    """Mixers keep their own initial draw, although the library draws every nn.Linear anew with a deviation of 0.02."""
    mixer = HyenaForCausalLM(HyenaConfig(**SIZES)).model.layers[0].self_attn.mixer
    alone = HyenaMixer(16, 7)
    for name, parameter in mixer.named_parameters():
        torch.testing.assert_close(parameter.std(), alone.get_parameter(name).std(), rtol=0.5, atol=1e-3)


@pytest.mark.parametrize("by", ["cu_seq_lens_q", "position_ids"])
def test_packed_is_padded(by: str) -> None:
    lm, lengths = model(), [5, 1, 9]
    rows = [torch.randint(3, 50, (n,)) for n in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    want = lm(padded, attention_mask=(padded != 0).long()).logits[padded != 0]
    where = {
        "cu_seq_lens_q": torch.tensor([0, 5, 6, 15], dtype=torch.int32),
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
    }
    got = lm(torch.cat(rows)[None], **{by: where[by]}).logits[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_positions_of_several_packed_rows() -> None:
    lm, ids = model(), torch.randint(3, 50, (2, 10))
    positions = torch.cat([torch.arange(4), torch.arange(6)]).expand(2, -1)
    want = torch.cat([lm(ids[:, :4]).logits, lm(ids[:, 4:]).logits], 1)
    torch.testing.assert_close(lm(ids, position_ids=positions).logits, want, rtol=1e-4, atol=1e-5)
    assert torch.equal(lm(ids, position_ids=torch.arange(10)[None]).logits, lm(ids).logits)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    lm, (ids, mask) = model(attention_dropout=0.0).train(), prompts()

    def gradients() -> list[Tensor]:
        lm.zero_grad()
        lm(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss.backward()
        return [p.grad.clone() for p in lm.parameters()]

    plain = gradients()
    lm.activation_checkpointing_enable()
    for a, b in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(a, b)


def test_training_makes_no_cache() -> None:
    lm, ids = model(), torch.randint(3, 50, (2, 14))
    assert lm.train()(ids).cache is None
    assert lm.eval()(ids).cache is not None
    assert model(mixer_options={"bidirectional": True}).eval()(ids).cache is None  # these have no streaming state


def test_masks_of_queries_by_keys_and_hidden_states() -> None:
    lm, (ids, mask) = model(), prompts()
    square = (mask[:, None, None] * torch.ones(9, 9).tril()).bool()  # (B, 1, L, L)
    out = lm(ids, attention_mask=square, output_hidden_states=True)
    assert torch.equal(out.logits, lm(ids, attention_mask=mask).logits)
    assert [tuple(h.shape) for h in out.hidden_states] == 3 * [(3, 9, 16)]
    both_ways = mask[:, None, None].bool().expand(-1, 1, 9, 9)
    with pytest.raises(ValueError, match="see all real keys up to itself, and no later ones;"):
        lm(ids, attention_mask=both_ways)
    lm = model(mixer_options={"bidirectional": True}).eval()
    assert torch.equal(lm(ids, attention_mask=both_ways).logits, lm(ids, attention_mask=mask).logits)
    with pytest.raises(ValueError, match="see all real keys, later ones too;"):
        lm(ids, attention_mask=square)


@pytest.mark.parametrize("packed", [False, True])
def test_the_trainer(packed: bool, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    period = [{"input_ids": [3 + (start + t) % 7 for t in range(length)]} for start in range(7) for length in (9, 14)]
    if packed:
        collate = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    else:

        def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
            ids = [torch.tensor(row["input_ids"]) for row in rows]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
            return {
                "input_ids": padded,
                "attention_mask": (padded != 0).long(),
                "labels": padded.masked_fill(padded == 0, -100),
            }

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=30, per_device_train_batch_size=7, learning_rate=1e-2,
        report_to=[], logging_strategy="no", save_strategy="no", disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip
    trainer = transformers.Trainer(model(), arguments, data_collator=collate, train_dataset=period, eval_dataset=period)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * before


def test_what_is_refused() -> None:
    lm, (ids, mask) = model(), prompts()
    with pytest.raises(ValueError, match=r"DynamicCache\(config=model.config\)"):
        lm(ids, cache=transformers.DynamicCache())
    cache = lm(ids, attention_mask=mask).cache
    with pytest.raises(ValueError, match="must not be padding"):
        lm(ids, cache=cache, attention_mask=torch.cat([mask, mask], 1))
    with pytest.raises(ValueError, match="without a cache"):
        lm(ids.flatten()[None], cu_seq_lens_q=torch.tensor([0, 27]), use_cache=True)
    with pytest.raises(ValueError, match="no attention weights"):
        lm(ids, output_attentions=True)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        lm()
    with pytest.raises(ValueError, match="can be cropped"):
        lm.generate(ids[:1], prompt_lookup_num_tokens=2, max_new_tokens=3)
    with pytest.raises(NotImplementedError, match="cannot forget"):
        cache.crop(-1)


def test_the_example_trains_and_evaluates() -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("accelerate")
    from examples.hosts.common import Task, generated_log
    from examples.hosts.transformers.train import run

    value, _ = run("hyena", Task(generated_log(users=40, items=60), 16, epochs=1, seed=0))
    assert 0 < value <= 1
