"""Train a recommender on a small generated log from Python, and recommend with it."""

import tempfile
from pathlib import Path

from hyenarec import Recommender
from hyenarec.cli import main as hyenarec
from hyenarec.data.synthetic import write_synthetic_log


def main(folder: Path) -> None:
    log, run = folder / "log.csv", folder / "run"
    write_synthetic_log(log, users=100, items=100, mean_history=40)  # columns user_id, item_id, timestamp

    # The same as on the command line: hyenarec train log.csv --out run ... People come back to items here, so items
    # of the history stay eligible.
    shape = ["--max-length", "50", "--dim", "32", "--blocks", "1"]
    training = ["--epochs", "8", "--batch-size", "8", "--learning-rate", "3e-3", "--no-exclude-seen"]
    hyenarec(["train", str(log), "--out", str(run), *shape, *training])

    recommender = Recommender.load(run)
    histories = [["jazz-001", "jazz-002", "jazz-003"], ["soul-002"]]  # of people whom training never saw
    for history, answer in zip(histories, recommender.recommend(histories, k=3, exclude_seen=False), strict=True):
        print(" ".join(history), "->", ", ".join(f"{found.item} ({found.score:.2f})" for found in answer))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
