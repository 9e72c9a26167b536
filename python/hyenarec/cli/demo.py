"""``hyenarec demo``: every step from a synthetic log to recommendations, in a few minutes on two cores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # --help needs no torch
    from hyenarec.config import ModelConfig

LOG = {"users": 400, "items": 300, "mean_history": 300}
LENGTH = 512  # events of a history that the models read
SEEDS = (0, 1)
EPOCHS = 12
NAMES = {"hyena": "HyenaRec", "attention": "SASRec"}
HISTORY_SHOWN = 12
SHOWN_LAST = (
    1,
    2,
    5,
    10,
    20,
    50,
    100,
    200,
    500,
)  # events of a history that a model is shown, to see what more of them add
TIMED_LENGTHS = (50, 200, 800, 3200)  # events of a history
TIMED_EVENTS = 12_800  # in a training step that is timed


@dataclass(frozen=True)
class Demo:
    """Generate a synthetic log of returning favourites and short bursts, train HyenaRec and SASRec on it, and show how
    accurate and how fast they are, what a longer history adds and what the filters have learned."""

    out: Path = Path("demo")
    """Folder for the log, the runs and the pictures."""

    def run(self) -> None:
        from hyenarec.cli.recommend import show_recommendations
        from hyenarec.config import ModelConfig, TrainingConfig
        from hyenarec.data.synthetic import write_synthetic_log
        from hyenarec.display import console, show_table
        from hyenarec.evaluation import rank_targets
        from hyenarec.experiments import COLUMNS, baseline_rows, mean_and_spread, summarise, train
        from hyenarec.files import PNG, refuse_foreign
        from hyenarec.plots import learned_filters, lines, training_curves
        from hyenarec.recommendation import Recommender
        from hyenarec.run_folder import check_folder, read_history
        from hyenarec.source import Source, load_source

        check_folder(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        log = self.out / "log.csv"
        pictures = {name: self.out / f"{name}.png" for name in ("curve", "filters", "history", "time")}
        for picture in pictures.values():
            refuse_foreign(picture, PNG)
        write_synthetic_log(log, **LOG)
        source = Source(str(log))
        store, split = load_source(source)
        console.print(
            f"{log}: {store.n_users:,} users, {store.n_items:,} items, {store.n_events:,} events", highlight=False
        )
        # People come back to the same items here, as in music or shopping, so seen items stay eligible.
        training = TrainingConfig(
            epochs=EPOCHS, batch_size=6, schedule="cosine", learning_rate=3e-3, exclude_seen=False
        )
        base = ModelConfig(max_length=LENGTH)
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES.values()}
        histories = {}
        for mixer, name in NAMES.items():
            for seed in SEEDS:
                console.rule(f"{name}, seed {seed}")
                folder = self.out / f"{mixer}-{seed}"
                configs = configuration(base, mixer), replace(training, seed=seed)
                results[name].append(train(store, split, *configs, source, folder))
            histories[name] = read_history(self.out / f"{mixer}-{SEEDS[0]}")
        console.rule("results")
        rows = [{"model": name, **mean_and_spread(cells, len(SEEDS))} for name, cells in summarise(results).items()]
        rows += baseline_rows(store, split, base, training)
        seeds = ", ".join(map(str, SEEDS))
        title = f"test: the last event of each user, ranked among all items; mean ± s.d. of seeds {seeds}"
        show_table(title, ("model", *COLUMNS), rows)
        console.print("SASRec is as published; the option --repeats gives it HyenaRec's repeat head", highlight=False)
        recommenders = {name: Recommender.load(self.out / f"{mixer}-{SEEDS[0]}") for mixer, name in NAMES.items()}
        ours = recommenders["HyenaRec"]
        history = store.item_ids.decode(store.history(0))
        console.print(
            f"user {store.user_ids.decode([0])[0]}, last {HISTORY_SHOWN} of {len(history)} events:", highlight=False
        )
        console.print("  " + " ".join(map(str, history[-HISTORY_SHOWN:])), highlight=False)
        show_recommendations("next, by HyenaRec", ours.recommend([history], exclude_seen=False)[0])
        training_curves(histories, training.metric, pictures["curve"])
        learned_filters(ours.model, pictures["filters"])
        added = {
            name: [
                rank_targets(recommender, store, split.test, max_length=last, exclude_seen=False).metrics()["NDCG@10"]
                for last in SHOWN_LAST
            ]
            for name, recommender in recommenders.items()
        }
        axes = "last events of a history that the model is shown", "test NDCG@10"
        lines(SHOWN_LAST, added, axes, pictures["history"])
        seconds = {
            name: [
                1e6 * seconds_per_event(replace(recommender.model.config, max_length=length))
                for length in TIMED_LENGTHS
            ]
            for name, recommender in recommenders.items()
        }
        axes = "events of a history", "microseconds of training per event"
        lines(TIMED_LENGTHS, seconds, axes, pictures["time"])
        ratio = seconds["SASRec"][-1] / seconds["HyenaRec"][-1]
        console.print(
            f"training at {TIMED_LENGTHS[-1]:,} events of history: HyenaRec {seconds['HyenaRec'][-1]:.1f} microseconds "
            f"per event, SASRec {seconds['SASRec'][-1]:.1f}, {ratio:.1f} times as many"
        )
        console.print(f"pictures: {', '.join(map(str, pictures.values()))}", highlight=False)


def configuration(base: ModelConfig, mixer: str) -> ModelConfig:
    """That of HyenaRec by its defaults, or of a published rival."""
    return replace(base, mixer=mixer, repeats="auto" if mixer == "hyena" else "off")


def seconds_per_event(model: ModelConfig) -> float:
    """Seconds per event of a training step, forward and backward, with histories of ``max_length`` events."""
    import time

    import torch

    from hyenarec.data.batches import Batch
    from hyenarec.losses import full_cross_entropy
    from hyenarec.model import SequenceModel
    from hyenarec.packing import Packing

    sequences = TIMED_EVENTS // model.max_length
    items = torch.randint(100, (sequences * model.max_length,))
    targets = items.roll(-1)
    batch = Batch(items, Packing.from_lengths(torch.full((sequences,), model.max_length)), targets=targets)
    timed = SequenceModel(model, n_items=100)
    best = float("inf")
    for _ in range(3):  # the first also pays for allocating memory
        began = time.perf_counter()
        hidden = timed(batch)
        repeats = None if timed.repeats is None else timed.repeats.of_targets(hidden, batch)
        full_cross_entropy(hidden, timed.table(), timed.bias, targets, repeats).backward()  # type: ignore[no-untyped-call]
        best = min(best, time.perf_counter() - began)
    return best / len(batch.items)
