"""The items of a model, with names if there are some, for display and search."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

from hyenarec.answers import Item, item_cells
from hyenarec.data.ids import Ids

APART = "\n"
EXACT = 2**53 - 1  # the largest integer that every reader of JSON keeps


class Catalogue:
    """Finds items by a part of their ids or names, ignoring case.

    All ids and names are joined into one text, which Python searches a thousand times faster than one text per item.
    """

    def __init__(self, ids: Ids, names: Mapping[Item, str] | None) -> None:
        self._ids, self._names = ids, names
        items = ids.decode(range(len(ids)))
        texts = [f"{item} {(names or {}).get(item, '')}".rstrip().casefold() for item in items]
        self._text = APART.join(texts)
        self._starts = list(accumulate((len(text) + len(APART) for text in texts), initial=0))

    def cells(self, item: Item) -> dict[str, Item | None]:
        """An item with its name, as answers contain it. Integers that JavaScript would round are text; requests may
        give any integer id as text."""
        cells = item_cells(item, self._names)
        return cells | {"item": str(item)} if isinstance(item, int) and abs(item) > EXACT else cells

    def search(self, text: str, k: int) -> list[Item]:
        """The first ``k`` items, in the order of the ids, whose id or name contains ``text``."""
        places: list[int] = []
        wanted, at = text.casefold(), 0
        while len(places) < k and (at := self._text.find(wanted, at)) >= 0:
            place = bisect_right(self._starts, at) - 1
            if place == len(self._ids):
                break
            if at + len(wanted) < self._starts[place + 1]:  # a match must not span two items
                places.append(place)
                at = self._starts[place + 1]
            else:
                at += 1
        return self._ids.decode(places)
