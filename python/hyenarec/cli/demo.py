"""``hyenarec demo``: the whole way from a log to recommendations on a synthetic log, in a few minutes on two cores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

HISTORY_SHOWN = 12


@dataclass(frozen=True)
class Demo:
    """Generate a synthetic log of slow drifts and short bursts, train HyenaRec and SASRec on it, and show what they
    do."""

    out: Path = Path("demo")
    """Folder for the log, the runs and the pictures."""

    def run(self) -> None:
        from hyenarec.cli.recommend import show_recommendations
        from hyenarec.config import ModelConfig, TrainingConfig
        from hyenarec.data.synthetic import write_synthetic_log
        from hyenarec.display import console, show_table
        from hyenarec.experiments import COLUMNS, baseline_rows, result_cells, train
        from hyenarec.files import PNG, refuse_foreign
        from hyenarec.plots import learned_filters, training_curves
        from hyenarec.recommendation import Recommender
        from hyenarec.run_folder import check_folder, read_history
        from hyenarec.source import Source, load_source

        check_folder(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        log, pictures = self.out / "log.csv", [self.out / name for name in ("curve.png", "filters.png")]
        for picture in pictures:
            refuse_foreign(picture, PNG)
        write_synthetic_log(log)
        source = Source(str(log))
        store, split = load_source(source)
        console.print(
            f"{log}: {store.n_users:,} users, {store.n_items:,} items, {store.n_events:,} events", highlight=False
        )
        # People come back to the same items here, as in music or shopping, so seen items stay eligible.
        training = TrainingConfig(epochs=15, batch_size=32, schedule="cosine", learning_rate=3e-3, exclude_seen=False)
        base = ModelConfig(max_length=200)
        rows, histories = [], {}
        for mixer, name in (("hyena", "HyenaRec"), ("attention", "SASRec")):
            console.rule(name)
            model = replace(base, mixer=mixer)
            result = train(store, split, model, training, source, self.out / mixer)
            rows.append({"model": name, **result_cells(result)})
            histories[name] = read_history(self.out / mixer)
        console.rule("results")
        rows += baseline_rows(store, split, base, training)
        show_table("test: the last event of each user, ranked among all items", ("model", *COLUMNS), rows)
        recommender = Recommender.load(self.out / "hyena")
        history = store.item_ids.decode(store.history(0))
        console.print(
            f"user {store.user_ids.decode([0])[0]}, last {HISTORY_SHOWN} of {len(history)} events:", highlight=False
        )
        console.print("  " + " ".join(map(str, history[-HISTORY_SHOWN:])), highlight=False)
        show_recommendations("next, by HyenaRec", recommender.recommend([history], exclude_seen=False)[0])
        training_curves(histories, training.metric, pictures[0])
        learned_filters(recommender.model, pictures[1])
        console.print(f"pictures: {', '.join(map(str, pictures))}", highlight=False)
