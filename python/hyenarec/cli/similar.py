"""``hyenarec similar``: the items that are most alike to a model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from hyenarec.answers import item_cells
from hyenarec.cli.identifiers import IdArgument
from hyenarec.cli.options import NewItems, RunPath, names_of
from hyenarec.cli.recommend import show_items


@dataclass(frozen=True)
class Similar:
    """List the items most similar to one, by the cosine of the embeddings that the model learned.

    Items are similar if they mean the same for what people do next. They need not look alike.
    """

    run_path: RunPath
    """Run folder or checkpoint file."""
    item: Annotated[IdArgument, tyro.conf.Positional]
    """Id of the item. Put one that begins with a dash last, after two dashes: -- -ID."""
    k: Annotated[int, tyro.conf.arg(aliases=("-k",))] = 10
    """Similar items to list."""
    names: Path | None = None
    """Catalogue: a table with item ids (in the log's own column, or in item_id or id) and their name or title."""
    new_items: Annotated[NewItems, tyro.conf.arg(name="")] = field(default_factory=NewItems)
    json: bool = False
    """Print one JSON line instead of a table."""

    def run(self) -> None:
        from hyenarec.recommendation import Recommender

        recommender = self.new_items.join(Recommender.load(self.run_path))
        names = names_of(recommender, self.names)
        found = recommender.similar(self.item, self.k)
        if self.json:
            items = [{**item_cells(one.item, names), "cosine": round(one.cosine, 4)} for one in found]
            print(json.dumps({"for": self.item, "similar": items}, allow_nan=False))
            return
        (own,) = recommender.item_ids.decode(recommender.item_ids.encode([self.item]))
        name = names.get(own) if names else None
        title = f"similar to {self.item}" + (f", {name}" if name else "") + ", by the cosine of embeddings"
        show_items(title, [(one.item, one.cosine) for one in found], "cosine", names)
