# Generated from mooring/_async/_tasks.py by .ci/generate_sync.py; change that file.
"""Typed calls: items in, entities, labels, embeddings or rankings out."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np

from mooring._array_kinds import ImageItem, RowItem
from mooring._batching import BatchSize
from mooring._errors import ConfigError, InvalidInput, MooringError
from mooring._head_kinds import TextMultiClassification
from mooring._outcomes import Outcome
from mooring._progress import progress_bar
from mooring._service_kinds import CustomerServiceAnswer
from mooring._sync_work import SyncWork
from mooring._task_kind import Label, RankedAnswer, RankedItem, TaskKind, invalid
from mooring._task_kinds import Entity, Opinion

if TYPE_CHECKING:
    from mooring._sync._client import Client
    from mooring._sync._local_tasks import LocalPipelines

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
ManyT = TypeVar("ManyT")


class Task(Generic[ItemT, ResultT, ManyT]):
    """A model that says what it is for; the client's ``task`` makes it.

    Calling it with one item returns one result, with a sequence of items the results in the same order.
    More items than the model's ``max_batch_size`` are sent as several requests, one after the other; ``map``
    keeps several under way.
    """

    def __init__(
        self,
        client: Client,
        kind: TaskKind[ItemT, ResultT],
        *,
        model: str,
        version: str,
        local: LocalPipelines | None,
    ) -> None:
        self._client = client
        self._kind = kind
        self._local = local
        self.model = model
        self.version = version

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @property
    def name(self) -> str:
        """The task, as the model's config names it."""
        return self._kind.name

    @overload
    def __call__(self, items: ItemT, *, timeout_s: float | None = None) -> ResultT: ...

    @overload
    def __call__(self, items: Sequence[ItemT], *, timeout_s: float | None = None) -> ManyT: ...

    def __call__(self, items: Any, *, timeout_s: float | None = None) -> Any:
        """Ask the model.

        Args:
            items: one item, or a sequence of items; none may be empty.
            timeout_s: time budget of the whole call in seconds, however many requests it takes;
                ``None`` takes the client's.

        Returns:
            One result for one item, else one result per item.

        Raises:
            InvalidInput: an empty sequence, an item that is none (nothing is sent then), or one that the
                model refuses.
            DecodeError: the answer contradicts the task.
            TransportError: no answer came.
            ServerError: the server said no.
        """
        checked = self._kind.check_items(items, model=self.model)
        deadline = self._client._begin(timeout_s)
        # Looked up at each call: a reload may have changed it. After one to 0, infer says what is wrong.
        signature = self._client._signature(deadline, self.model, self.version)
        size = signature.config.max_batch_size or len(checked)
        results: list[ResultT] = []
        for first in range(0, len(checked), size):
            batch = checked[first : first + size]
            results += self._ask(batch, first=first, timeout_s=deadline.left_s())
        return results[0] if self._kind.is_one(items) else self._kind.combine(results)

    def map(
        self,
        items: Iterable[ItemT],
        *,
        concurrency: int = 32,
        ordered: bool = True,
        batch_size: int | None = None,
        progress: bool = False,
        timeout_s: float | None = None,
    ) -> Generator[Outcome[ResultT], None, None]:
        """Ask the model about many items, several requests at a time.

        Items are taken from the iterable only when there is room for them, and results are held back until
        they are asked for, so neither piles up. An item that fails has its own error and stops nothing.

        Args:
            items: as many as there are.
            concurrency: requests under way at a time.
            ordered: whether results come in the order of the items, or as soon as they are there.
            batch_size: items in one request, fewer where an asynchronous iterable has no more at the moment;
                ``None`` finds out while it runs which size is fastest.
            progress: whether a progress bar is drawn on standard error (needs ``tqdm``).
            timeout_s: time budget of each request in seconds; ``None`` takes the client's.

        Yields:
            One :class:`Outcome` an item.

        Raises:
            ConfigError: ``concurrency`` or ``batch_size`` can't be right.
            InvalidInput: ``items`` is a single text, whose characters nobody means.
        """
        check_counts(concurrency=concurrency, batch_size=batch_size)
        if isinstance(items, str | bytes | bytearray):
            got = type(items).__name__
            raise invalid(self.model, f"map takes an iterable of {self._kind.items}, got one {got}")
        deadline = self._client._begin(timeout_s)
        signature = self._client._signature(deadline, self.model, self.version)
        size = BatchSize(max(1, signature.config.max_batch_size), batch_size)

        def ask(batch: list[tuple[int, Any]]) -> list[Outcome[ResultT]]:
            outcomes = self._ask_each(batch, timeout_s)
            size.note(len(batch))
            return outcomes

        bar = progress_bar(items, shown=progress, label=self.model)
        source = SyncWork.batches(items, size)
        batches = self._client._work.map(ask, source, concurrency=concurrency, ordered=ordered)
        try:
            for outcomes in batches:
                bar.update(len(outcomes))
                yield from outcomes
        finally:
            bar.close()
            batches.close()

    def _ask_each(self, batch: list[tuple[int, Any]], timeout_s: float | None) -> list[Outcome[ResultT]]:
        """One outcome an item; a request that the model refuses as a whole is repeated item by item."""
        good: list[tuple[int, Any]] = []
        outcomes: dict[int, Outcome[ResultT]] = {}
        for index, item in batch:
            try:
                self._kind.check_item(item, where=f"{self._kind.item} {index}", model=self.model)
            except InvalidInput as error:
                outcomes[index] = Outcome(index=index, error=error)
            else:
                good.append((index, item))
        if good:
            try:
                results = self._ask([item for _, item in good], first=0, timeout_s=timeout_s)
            except InvalidInput as error:
                if len(good) == 1:
                    outcomes[good[0][0]] = Outcome(index=good[0][0], error=error)
                else:
                    for single in good:
                        outcomes[single[0]] = (self._ask_each([single], timeout_s))[0]
            except MooringError as error:
                outcomes |= {index: Outcome(index=index, error=error) for index, _ in good}
            else:
                for (index, _), result in zip(good, results, strict=True):
                    outcomes[index] = Outcome(index=index, value=result)
        return [outcomes[index] for index, _ in batch]

    def _ask(self, items: Sequence[ItemT], *, first: int, timeout_s: float | None) -> list[ResultT]:
        try:
            if self._local is not None:
                answer = self._local.ask(items, timeout_s=timeout_s)
            else:
                answer = self._client.infer(
                    self.model,
                    self._kind.write(items),
                    outputs=list(self._kind.outputs),
                    version=self.version,
                    timeout_s=timeout_s,
                )
        except InvalidInput as exc:
            if first == 0:
                raise
            # The server counts from the start of its request.
            word = self._kind.item
            error = InvalidInput(
                f"{exc} ({word} 0 of that request is {word} {first} of the call)",
                model=exc.model,
                version=exc.version,
                code=exc.code,
            )
            raise error from exc
        return self._kind.read(items, answer, model=self.model)


class TokenClassifier(Task[str, list[Entity], list[list[Entity]]]):
    """Finds entities in texts: a list of :class:`Entity` per text, in the order of the text."""


class TextClassifier(Task[str, list[Label], list[list[Label]]]):
    """Labels texts: a list of :class:`Label` per text, best first, as many as the model gives."""


class TextMultiClassifier(Task[str, dict[str, list[Label]], list[dict[str, list[Label]]]]):
    """Labels texts by several heads at once: for each text a list of :class:`Label` by head, best first."""

    _kind: TextMultiClassification

    @property
    def heads(self) -> tuple[str, ...]:
        """Those that are asked for: all of the model's, unless ``only`` made the task."""
        return self._kind.heads

    def only(self, *heads: str) -> TextMultiClassifier:
        """The same task for some of its heads: nothing is sent or received for the others.

        Raises:
            ConfigError: no head is named, or one that this task does not ask for.
        """
        kind = self._kind.only(heads, model=self.model)
        return TextMultiClassifier(
            self._client, kind, model=self.model, version=self.version, local=self._local
        )


class Embedder(Task[str, np.ndarray, np.ndarray]):
    """Embeds texts: one as ``[D]``, ``B`` of them as ``[B, D]``, float32."""


class TextRanker(Task[str, list[RankedAnswer], list[list[RankedAnswer]]]):
    """Ranks items for a text: a list of :class:`RankedAnswer` per text, best first."""


class Recommender(Task[Sequence[str], list[RankedItem], list[list[RankedItem]]]):
    """Ranks items for a history of items, oldest first: a list of :class:`RankedItem`, best first."""


class ImageClassifier(Task[ImageItem, list[Label], list[list[Label]]]):
    """Labels images: a list of :class:`Label` an image, best first.

    An image is the bytes of a JPEG or PNG file, the path of one, or an array: uint8 ``[H, W]``, or
    ``[H, W, 3]`` for red, green and blue.
    """


class TabularClassifier(Task[RowItem, list[Label], list[list[Label]]]):
    """Labels rows of numbers: a list of :class:`Label` a row, best first.

    A row is a sequence of numbers or an array ``[F]``; an array ``[B, F]`` is a sequence of rows.
    """


class OpinionClassifier(Task[str, Opinion, list[Opinion]]):
    """Says what texts are about and how they speak of it: an :class:`Opinion` per text."""


class CustomerService(Task[str, CustomerServiceAnswer, list[CustomerServiceAnswer]]):
    """Answers customers' messages: a :class:`CustomerServiceAnswer` per text."""


#: The class of each task.
TASKS: dict[str, type[Any]] = {
    "customer-service": CustomerService,
    "feature-extraction": Embedder,
    "image-classification": ImageClassifier,
    "opinion-monitoring": OpinionClassifier,
    "recommendation": Recommender,
    "tabular-classification": TabularClassifier,
    "text-classification": TextClassifier,
    "text-multi-classification": TextMultiClassifier,
    "text-ranking": TextRanker,
    "token-classification": TokenClassifier,
}


def check_counts(*, concurrency: int, batch_size: int | None = None) -> None:
    """Check the numbers of a map.

    Raises:
        ConfigError: not whole numbers from 1.
    """
    for name, value in (
        ("concurrency", concurrency),
        ("batch_size", 1 if batch_size is None else batch_size),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a whole number from 1, got {value!r}")
