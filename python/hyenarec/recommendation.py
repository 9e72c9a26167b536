"""Serving: from histories to recommendations, both in the log's own item ids."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyenarec.answers import NOTHING, Answer, Item, Neighbour, Recommendation, Request
from hyenarec.continuing import with_new_items
from hyenarec.data.batches import Batch, pack_histories
from hyenarec.data.ids import Ids
from hyenarec.data.times import UNITS, caller_seconds
from hyenarec.environment import check_backend
from hyenarec.errors import UserError, expect, is_iterable, shortened
from hyenarec.evaluation import scored_at_a_time
from hyenarec.featured_items import LearnedFeatures
from hyenarec.files import as_path
from hyenarec.mixers import MIXERS
from hyenarec.model import SequenceModel
from hyenarec.model_state import ModelState
from hyenarec.nearest import NearestItems
from hyenarec.ranking import NOT_FINITE, best_items
from hyenarec.session import Session
from hyenarec.trained import Trained, load_trained

if TYPE_CHECKING:
    from hyenarec.compiled import CompiledModel

HISTORIES_AT_A_TIME = 256


class Recommender:
    """A trained model with its id maps.

    >>> recommender = Recommender.load("runs/ml")
    >>> recommender.recommend([[318, 527, 2858]], k=10)
    """

    def __init__(
        self,
        model: SequenceModel,
        user_ids: Ids,
        item_ids: Ids,
        config: dict[str, Any],
        device: torch.device,
        features: LearnedFeatures | None = None,
    ) -> None:
        self.model = model.folded().to(device).eval()
        self.features = features
        self.user_ids, self.item_ids, self.config, self.device = user_ids, item_ids, config, device
        self._index: NearestItems | None = None
        self._compiled: CompiledModel | None = None

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu", *, shard_items: bool = False) -> Recommender:
        """Load a run's folder (its best checkpoint) or one checkpoint file.

        With ``shard_items`` each of the processes that ``hyenarec.distributed.start`` joined holds a part of the
        item table: all must ask the same questions, each scores its own items, and all get the same answers.
        Raises :class:`UserError` where there is no checkpoint, or it is damaged or of another version.
        """
        trained = load_trained(as_path(path, "run"), shard_items=shard_items)
        try:
            place = torch.device(device)
            if place.type == "meta":
                raise RuntimeError("it computes no values")
            check_backend(place)
            return cls(trained.model, trained.user_ids, trained.item_ids, trained.config, place, trained.features)
        except (RuntimeError, TypeError, AssertionError) as error:  # whatever torch raises for this device
            reason = str(error).splitlines()[0]
            raise UserError(f"option device: {shortened(device)} cannot be used here: {reason}") from error

    def with_items(self, path: str | Path) -> Recommender:
        """This recommender with the new items of a table of features: those that the model does not know.

        ``path`` is a table like the one that the model was trained with. A new item gets a row made from its features
        alone, and the mean of all items' biases; rows of known items stay as learned, whatever the table has for them.

        Raises :class:`UserError` where the model was trained without features, and for what is wrong with the table.
        """
        self._refuse_shard("option item-features")
        trained = Trained(self.model, self.user_ids, self.item_ids, self.config, features=self.features)
        extended = with_new_items(trained, as_path(path, "option item-features"))
        return Recommender(
            extended.model, self.user_ids, extended.item_ids, self.config, self.device, extended.features
        )

    def approximate(self) -> None:
        """From now on, :meth:`recommend` and :meth:`answers` look items up in an index of faiss, which is built here,
        instead of scoring the whole catalogue: they find nearly the same items.

        Raises :class:`UserError` where faiss, of the extra ``hyenarec[ann]``, is not installed.
        """
        self._refuse_shard("an approximate index")
        self._index = NearestItems(self.model)

    def scores(self, batch: Batch) -> Tensor:
        """Scores of every item as the next one after each packed history, (S, V), computed as in training."""
        expect(batch, Batch, "batch", "a Batch")
        if self._compiled is not None and self._compiled.takes_batch(batch):
            return self.model.scores_of(self._compiled.hidden(batch), self.model.recent(batch))
        with self.autocast():
            return self.model.scores(batch)

    def step(self, items: Tensor, state: ModelState, timestamps: Tensor | None = None) -> tuple[Tensor, ModelState]:
        """The model's own ``step``, compiled if :meth:`compile` was called."""
        if self._compiled is not None and self._compiled.takes_step(state, timestamps):
            return self._compiled.step(items, state, timestamps)
        with self.autocast():
            return self.model.step(items, state, timestamps)

    def compile(self, *, compact: bool = False) -> None:
        """Compile what this recommender computes from now on: the steps of sessions whose states are compact or not, as
        ``compact`` says, and forwards of whole histories. They then run in float32, without Python between operators.

        This takes half a minute and a C++ compiler. Raises :class:`UserError` where there is none, on a GPU, and for
        mixers that cannot be exported.
        """
        from hyenarec.compiled import CompiledModel  # importing what compiles takes half a second

        self._refuse_shard("compile")
        expect(compact, (bool, np.bool_), "option compact", "True or False")
        if self.device.type != "cpu":
            raise UserError(f"compile: it is for the CPU, and the model is on {self.device}")
        self._compiled = CompiledModel(self.model, compact=bool(compact))

    def autocast(self) -> torch.autocast:
        """A context with the precision that the model was trained in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config["training"]["bf16"])

    def session(
        self,
        histories: Iterable[Sequence[Item]] = (),
        *,
        timestamps: Iterable[Sequence[int]] | None = None,
        compact: bool = False,
    ) -> Session:
        """A session for users whose events come one at a time, after what happened so far; a history may be empty.
        ``compact`` makes the states of the hyena mixer small, but not quite exact beyond its horizon.

        Raises :class:`UserError` for unknown items, wrong timestamps, and a mixer that is not causal.
        """
        self._refuse_shard("a session")
        expect(compact, (bool, np.bool_), "option compact", "True or False")
        return Session(self, self.requests(histories, timestamps), compact=bool(compact))

    def recommend(
        self,
        histories: Iterable[Sequence[Item]],
        k: int = 10,
        *,
        timestamps: Iterable[Sequence[int]] | None = None,
        exclude_seen: bool | None = None,
        allowed: Tensor | None = None,
    ) -> list[list[Recommendation]]:
        """The best ``k`` next items for each history, oldest event first; users may be known or new.

        ``timestamps``, one per event in the log's own unit, are for models that know time (hytrec, fuxi_linear);
        without them such a model uses positions instead, and warns. With ``exclude_seen`` no item of the history (all
        of it, not only what the model reads) is recommended; the default is what evaluation used in training.
        ``allowed`` (V,) bool, made by :meth:`allowed`, says which items may be recommended. Raises :class:`UserError`
        for the first history that is empty, has an unknown item, impossible timestamps or fewer than ``k`` items to
        recommend; :meth:`answers` still answers the others.
        """
        answers = self.answers(
            histories, k, timestamps=timestamps, exclude_seen=exclude_seen, allowed=allowed, unknown="error"
        )
        return [answer.all_of(k, f"history {number}") for number, answer in enumerate(answers, 1)]

    def answers(
        self,
        histories: Iterable[Sequence[Item]],
        k: int = 10,
        *,
        timestamps: Iterable[Sequence[int]] | None = None,
        exclude_seen: bool | None = None,
        allowed: Tensor | None = None,
        unknown: Literal["skip", "error"] = "skip",
    ) -> Iterator[Answer]:
        """One :class:`Answer` for each history, in their order, while ``histories`` are read block by block.

        Like :meth:`recommend`, but no history can make the others fail: one without an answer says why, and one that
        has seen nearly everything gets fewer than ``k`` items. With ``unknown="skip"``, items that the model does not
        know are left out of a history; with ``"error"`` such a history gets no answer. Raises :class:`UserError` for a
        wrong ``k``, for items where histories are expected, and where there are not as many timestamps as events.
        """
        self.check_k(k)
        if isinstance(histories, str | bytes):
            raise _not_nested(histories)
        for what, given in (("histories", histories), ("timestamps", timestamps)):
            if not is_iterable(given) and (given is not None or what == "histories"):
                raise UserError(f"{what}: expected one list for each history, got {shortened(given)}")
        exclude_seen = self.excludes(exclude_seen)
        if unknown not in ("skip", "error"):
            raise UserError(f"option unknown: expected 'skip' or 'error', got {shortened(unknown)}")
        mixer = self.model.config.mixer
        if timestamps is None and MIXERS[mixer].knows_time:
            warnings.warn(f"{mixer}: no timestamps given; positions take their place", stacklevel=3)
        requests = self._requests(histories, timestamps, unknown)
        return self._answer_in_blocks(requests, k, exclude_seen, allowed)

    def allowed(self, allow: Iterable[Item] | None = None, deny: Iterable[Item] = ()) -> Tensor:
        """Which items of the catalogue may be recommended, (V,) bool: all, or only those of ``allow`` if it is given,
        without those of ``deny``. Raises :class:`UserError` for an unknown item, and where none is left."""
        mask = torch.full((len(self.item_ids),), allow is None)
        for items, value in ((allow or (), True), (deny, False)):
            mask[torch.from_numpy(self.item_ids.encode(list(items), "item").astype(np.int64))] = value
        if not mask.any():
            raise UserError(f"filters: they leave none of the catalogue's {len(self.item_ids)} items to recommend")
        return mask.to(self.device)

    @torch.inference_mode()
    def similar(self, item: Item, k: int = 10) -> list[Neighbour]:
        """The ``k`` items whose embeddings have the highest cosine with that of ``item``, which is not among them.

        Embeddings are how the model reads items, so similar items are those that mean the same for what comes next.
        Raises :class:`UserError` for an unknown item, and for ``k`` below 1 or above the number of other items.
        """
        self._refuse_shard("similar")
        self.check_k(k)
        if k == len(self.item_ids):
            raise UserError(f"option k: {k} items asked for, but the catalogue has {k - 1} others")
        (place,) = self.item_ids.encode([item], "item").tolist()
        rows = torch.nn.functional.normalize(self.model.items.weight.float(), dim=1)  # (V, D)
        cosines = rows @ rows[place]  # (V,)
        cosines[place] = float("-inf")
        best = cosines.topk(k)
        found = self.item_ids.decode(best.indices.cpu().numpy())
        return [Neighbour(*pair) for pair in zip(found, best.values.tolist(), strict=True)]

    def requests(
        self, histories: Iterable[Sequence[Item]], timestamps: Iterable[Sequence[int]] | None
    ) -> list[Request]:
        """Histories as the model reads them; they may be empty. Raises :class:`UserError` for the first that it cannot
        read."""
        found = list(self._requests(histories, timestamps, "error", empty=True))
        for number, request in enumerate(found, 1):
            if request.error:
                raise UserError(f"history {number}: {request.error}")
        return found

    def _refuse_shard(self, what: str) -> None:
        if self.model.shard:
            raise UserError(f"{what}: needs the whole item table, and this process holds a part; load the model whole")

    def check_k(self, k: int) -> None:
        expect(k, (int, np.integer), "option k", "a whole number")
        if k < 1:
            raise UserError(f"option k: {k} is below 1")
        if k > len(self.item_ids):
            raise UserError(f"option k: {shortened(k)} items asked for, but the catalogue has {len(self.item_ids)}")

    def excludes(self, exclude_seen: bool | None) -> bool:
        if exclude_seen is None:
            return bool(self.config["training"]["exclude_seen"])
        expect(exclude_seen, (bool, np.bool_), "option exclude_seen", "True, False or None")
        return bool(exclude_seen)

    def _requests(
        self,
        histories: Iterable[Sequence[Item]],
        timestamps: Iterable[Sequence[int]] | None,
        unknown: Literal["skip", "error"],
        *,
        empty: bool = False,
    ) -> Iterator[Request]:
        rows = iter(timestamps) if timestamps is not None else None
        for history in histories:
            if isinstance(history, str | bytes) or not is_iterable(history):
                raise _not_nested(history)
            if isinstance(history, Set | Mapping):
                raise UserError(f"histories: {shortened(history)} has no order; give a list, oldest event first")
            items = list(history)
            times = None if rows is None else next(rows, None)
            if rows is not None and (
                not isinstance(times, Collection) or not is_iterable(times) or len(times) != len(items)
            ):
                raise UserError("timestamps: one is needed for each event of each history")
            try:
                yield Request(NOTHING, None, [], None) if empty and not items else self._request(items, times, unknown)
            except UserError as error:
                yield Request(NOTHING, None, [], str(error))
        if rows is not None and next(rows, None) is not None:
            raise UserError("timestamps: one is needed for each event of each history")

    def _request(
        self, items: list[Item], timestamps: Sequence[int] | None, unknown: Literal["skip", "error"]
    ) -> Request:
        if not items:
            raise UserError("empty; at least one item is needed")
        times = caller_seconds(timestamps, self.time_unit) if timestamps is not None and self.knows_time else None
        places = self.item_ids.find(items) if unknown == "skip" else self.item_ids.encode(items, "item")
        known = places >= 0
        dropped = [items[index] for index in np.flatnonzero(~known)]
        if not known.any():
            return Request(NOTHING, None, dropped, f"the model knows none of its items; the first is {items[0]!r}")
        return Request(places[known], None if times is None else times[known], dropped, None)

    @property
    def time_unit(self) -> str:
        """The unit of the log's own times, in which callers give theirs."""
        data = self.config.get("data")
        unit = data.get("time_unit") if isinstance(data, dict) else None
        if unit not in UNITS:
            raise UserError(f"the model's configuration has no unit of time: {unit!r} is none of {', '.join(UNITS)}")
        return str(unit)

    @property
    def knows_time(self) -> bool:
        return MIXERS[self.model.config.mixer].knows_time

    def batch(self, requests: Sequence[Request]) -> Batch:
        """The histories of ``requests`` as the model reads them, on its device."""
        times = [request.times for request in requests if request.times is not None]
        histories = [request.items for request in requests]
        return pack_histories(histories, self.model.config.max_length, times or None).to(self.device)

    def _answer_in_blocks(
        self, requests: Iterator[Request], k: int, exclude_seen: bool, allowed: Tensor | None
    ) -> Iterator[Answer]:
        size = scored_at_a_time(len(self.item_ids), HISTORIES_AT_A_TIME)
        while block := list(islice(requests, size)):
            answerable = [request for request in block if request.error is None]
            found = iter(self._best(answerable, k, exclude_seen, allowed) if answerable else ())
            for request in block:
                yield next(found) if request.error is None else Answer([], request.unknown, request.error)

    @torch.inference_mode()
    def _best(self, requests: list[Request], k: int, exclude_seen: bool, allowed: Tensor | None) -> list[Answer]:
        """The best ``k`` items after each history, or as many as it leaves."""
        if self._index is not None:
            if allowed is not None:
                raise UserError("allow and deny: not used with an approximate index, which finds the best of all items")
            return self._approximate(self._index, requests, k, exclude_seen)
        scores = self.scores(self.batch(requests))  # (S, V)
        answers = self.ranked(scores, requests, k, exclude_seen, allowed)
        nothing = "the filters leave no item but those of the history itself"
        return [one if one.recommendations or one.error else replace(one, error=nothing) for one in answers]

    def _approximate(
        self, index: NearestItems, requests: Sequence[Request], k: int, exclude_seen: bool
    ) -> list[Answer]:
        """What :meth:`ranked` returns, for the items that ``index`` finds."""
        batch, seen = self.batch(requests), [request.items for request in requests] if exclude_seen else None
        with self.autocast():
            hidden = self.model.hidden_after(batch)  # (S, D)
        values, places = index.search(hidden, k, seen, None if exclude_seen else self.model.recent(batch))
        answers = []
        for request, row, found in zip(requests, values.tolist(), places.numpy(), strict=True):
            left = sum(value > float("-inf") for value in row)
            pairs = zip(self.item_ids.decode(found[:left]), row, strict=False)
            error = None if left else "the index finds no item for it: damaged weights, or every item seen"
            answers.append(Answer([Recommendation(*pair) for pair in pairs], request.unknown, error))
        return answers

    def best(
        self,
        scores: Tensor,
        histories: Sequence[NDArray[np.int32]],
        k: int,
        exclude_seen: bool | None,
        names: Sequence[str],
    ) -> list[list[Recommendation]]:
        """The best ``k`` items by ``scores`` (S, V), which are overwritten, after histories that messages call by
        ``names``."""
        self.check_k(k)
        requests = [Request(history, None, [], None) for history in histories]
        answers = self.ranked(scores, requests, k, self.excludes(exclude_seen)) if requests else []
        return [answer.all_of(k, name) for name, answer in zip(names, answers, strict=True)]

    def ranked(
        self,
        scores: Tensor,
        requests: Sequence[Request],
        k: int,
        exclude_seen: bool,
        allowed: Tensor | None = None,
    ) -> list[Answer]:
        """The result of ``hyenarec.ranking.best_items`` as answers."""
        histories = [request.items for request in requests]
        top = best_items(scores, histories if exclude_seen else None, k, allowed, self.model.shard)
        answers = []
        for row, request in enumerate(requests):
            items, error = self.item_ids.decode(top.places[row, : top.left[row]]), None
            if not top.finite[row]:
                items, error = [], NOT_FINITE
            elif not items and allowed is None:
                error = "it has every item of the catalogue, so none is left to recommend"
            found = [Recommendation(*pair) for pair in zip(items, top.scores[row].tolist(), strict=False)]
            answers.append(Answer(found, request.unknown, error))
        return answers


def _not_nested(given: object) -> UserError:
    return UserError(
        f"histories: {shortened(given)} is an item, not a history; nest them, as in recommend([[{shortened(given)}]])"
    )
