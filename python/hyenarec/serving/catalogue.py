"""Searching the items of a model."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from hyenarec.data.ids import Id, Ids

APART = "\n"


class Catalogue:
    """Items whose ids contain a text, upper or lower case alike.

    All ids are one text, in which Python finds another one a thousand times faster than in each of them.
    """

    def __init__(self, ids: Ids) -> None:
        self._ids = ids
        texts = [str(item).casefold() for item in ids.decode(range(len(ids)))]
        self._text = APART.join(texts)
        self._starts = list(accumulate((len(text) + len(APART) for text in texts), initial=0))

    def search(self, text: str, k: int) -> list[Id]:
        """The first ``k`` of them in the order of the ids."""
        wanted, places, at = text.casefold(), [], 0
        while len(places) < k and (at := self._text.find(wanted, at)) >= 0:
            place = bisect_right(self._starts, at) - 1
            if place == len(self._ids):
                break
            if at + len(wanted) < self._starts[place + 1]:  # not across two ids
                places.append(place)
                at = self._starts[place + 1]
            else:
                at += 1
        return self._ids.decode(places)
