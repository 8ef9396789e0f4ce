"""Orders and batches texts, windows of documents and streams for the collator."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset, IterableDataset

from text_jepa.data.reading import Source, read_rows
from text_jepa.data.windows import count_windows


Example = dict[str, Any]

_UNNAMED_STREAM = Source("the stream")


class LengthGroupedSampler(torch.utils.data.Sampler):
    """Samples texts so that those of a batch have similar lengths and batches come in random order.

    Texts are shuffled, divided into pools of `pool_batches` batches, sorted by length within each pool, divided into
    batches, and the batches shuffled. Texts that fill no batch come last. The order is a pure function of (seed,
    epoch, `batch_size`): unlike the sampler of the same name in transformers, this one has no running generator, so a
    resumed run sees the same order. A batch is everything that an optimizer step sees. The number of processes and of
    accumulated batches that share it, see [`BatchesOfProcesses`], does not change the order.

    Args:
        lengths: Number of tokens of each text.
        batch_size: Number of texts in an optimizer step.
        seed: Seed of the order.
        pool_batches: Number of batches that are sorted together. A larger number means less padding and less
            randomness.
        with_steps: Whether to yield (step, row) for [`TextsWithSteps`] instead of rows. The step is computed from
            epoch and position, so that it is the same for all workers and ranks and after a resume.
        drop_last: Whether to leave out the texts that fill no batch.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int = 0,
        pool_batches: int = 50,
        with_steps: bool = False,
        drop_last: bool = False,
    ):
        self.lengths = np.asarray(lengths[:])  # a whole column of the datasets library, instead of row by row
        self.batch_size = min(batch_size, len(lengths) + 1)  # the flag may exceed the integers of NumPy
        self.seed = seed
        self.pool_batches = pool_batches
        self.with_steps = with_steps
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; called by the data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.drop_last:
            return self._in_batches
        return len(self.lengths)

    @property
    def _in_batches(self) -> int:
        """Number of texts in full batches."""
        num_batches = len(self.lengths) // self.batch_size
        return num_batches * self.batch_size

    def __iter__(self) -> Iterator[int] | Iterator[tuple[int, int]]:
        rows = self._order()[: len(self)].tolist()
        if not self.with_steps:
            return iter(rows)
        return self._with_steps(rows)

    def _order(self) -> np.ndarray:
        """Rows in the order of the epoch: (N,)."""
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        pool_size = self.batch_size * self.pool_batches
        pool = np.arange(len(order)) // pool_size
        by_pool_and_length = np.lexsort((self.lengths[order], pool))
        order = order[by_pool_and_length]

        in_batches = self._in_batches
        batches = order[:in_batches].reshape(-1, self.batch_size)
        rest = order[in_batches:]
        order_of_batches = generator.permutation(len(batches))
        shuffled = batches[order_of_batches]
        return np.concatenate([shuffled.flatten(), rest])

    def _with_steps(self, rows: list[int]) -> Iterator[tuple[int, int]]:
        steps_per_epoch = -(-len(rows) // self.batch_size)  # rounded up
        first_step = self.epoch * steps_per_epoch
        for place, row in enumerate(rows):
            yield first_step + place // self.batch_size, row


class BatchesOfProcesses(torch.utils.data.Sampler):
    """Splits an order of texts into batches, assigned to processes round-robin.

    No text is repeated to fill a batch. The remaining texts of an epoch are divided as evenly as possible; only a
    process that would get none repeats one.

    Args:
        order: Keys of the texts, in order.
        batch_size: Number of texts in a batch of one process.
        num_processes: Number of processes.
        batches_per_step: Number of batches that a process accumulates.
    """

    def __init__(
        self,
        order: torch.utils.data.Sampler,
        batch_size: int,
        num_processes: int,
        batches_per_step: int = 1,
    ):
        self.order = order
        self.batch_size = batch_size
        self.num_processes = num_processes
        self.texts_per_step = batch_size * num_processes * batches_per_step

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; called by the data loader."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        steps, rest = divmod(len(self.order), self.texts_per_step)
        in_full_steps = steps * self._num_batches(self.texts_per_step)
        return in_full_steps + self._num_batches(rest)

    def __iter__(self) -> Iterator[list]:
        keys = iter(self.order)
        while texts := list(itertools.islice(keys, self.texts_per_step)):
            yield from self._cut(texts)

    def _num_batches(self, texts: int) -> int:
        """Number of batches of all processes for the texts of a step: the same number for each process."""
        rounds = -(-texts // (self.batch_size * self.num_processes))  # rounded up
        return rounds * self.num_processes

    def _cut(self, texts: list) -> Iterator[list]:
        """Splits the texts of a step into batches of about equal size."""
        num_batches = self._num_batches(len(texts))
        start = 0
        for number in range(num_batches):
            end = len(texts) * (number + 1) // num_batches
            repeated = texts[number % len(texts)]
            yield texts[start:end] or [repeated]
            start = end


def share_without_repeats(shard: BatchSamplerShard, batches_per_step: int) -> None:
    """Makes processes share texts by [`BatchesOfProcesses`], because accelerate would repeat texts to fill batches.

    Args:
        shard: The batch sampler of a process, modified in place.
        batches_per_step: Number of batches that a process accumulates.
    """
    batches = shard.batch_sampler
    shard.batch_sampler = BatchesOfProcesses(
        batches.sampler,
        batches.batch_size,
        shard.num_processes,
        batches_per_step,
    )
    # Batches may differ in size, but every process gets the same number of them.
    shard.batch_size = None
    shard.even_batches = False


def lengths_of(dataset: Dataset) -> Sequence[int]:
    """Number of tokens of each example: the column `length`, or counted if the dataset has none."""
    try:
        return dataset["length"]
    except (IndexError, KeyError, TypeError, ValueError):
        return [len(dataset[row]["input_ids"]) for row in range(len(dataset))]


class TextsWithSteps(torch.utils.data.Dataset):
    """Wraps a dataset so that the keys (step, row) are valid, too: their examples have a field `step`.

    Args:
        dataset: A map-style dataset.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.dataset)

    def __getitem__(self, key: int | str | tuple[int, int]) -> Any:
        if not isinstance(key, tuple):
            return self.dataset[key]
        step, row = key
        return {**self.dataset[row], "step": step}


class DocumentWindows(torch.utils.data.Dataset):
    """Windows of tokenized documents: each example has the whole document and the index of the window.

    The tokens of a document are read from the dataset, in memory or on disk, and not copied for each window.

    Args:
        documents: Examples of whole documents with `input_ids` and `length`, see `tokenize_documents`.
        window_length: Longest window in tokens, including special tokens.
        special_tokens: Number of special tokens around a text.
        max_windows: Number of windows to keep. Default: all.
    """

    def __init__(
        self,
        documents: Dataset,
        window_length: int,
        special_tokens: int,
        max_windows: int | None = None,
    ):
        self.documents = documents
        self._lengths = np.asarray(documents["length"][:])
        counts = count_windows(self._lengths, window_length - special_tokens)
        first = np.cumsum(counts) - counts
        document = np.repeat(np.arange(len(counts)), counts)
        window = np.arange(len(document)) - first[document]
        self._document = document[:max_windows]
        self._window = window[:max_windows]
        self._tokens = _TokenLists(documents)

    def __len__(self) -> int:
        return len(self._document)

    @property
    def num_documents(self) -> int:
        """Number of documents with at least one window."""
        if len(self) == 0:
            return 0
        return int(self._document[-1]) + 1

    @property
    def num_tokens(self) -> int:
        """Number of tokens of these documents; in each epoch, every token is in exactly one window."""
        return int(self._lengths[: self.num_documents].sum())

    def __iter__(self) -> Iterator[Example]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, key: int | str) -> Any:
        """Returns the example of an index; for `"length"` the number of tokens of each example's document, (N,)."""
        if key == "length":
            return self._lengths[self._document]
        input_ids = self._tokens[self._document[key]]
        return {"input_ids": input_ids, "window": int(self._window[key])}


class _TokenLists:
    """The column `input_ids` of a dataset as arrays, which are read without the cost of a whole example."""

    def __init__(self, dataset: Dataset):
        column = dataset.with_format("arrow")["input_ids"][:]
        chunks = getattr(column, "chunks", [column])
        self._values = [chunk.values.to_numpy(zero_copy_only=False) for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        lengths = np.array([len(chunk) for chunk in chunks])
        self._ends = np.cumsum(lengths)
        self._firsts = self._ends - lengths

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = int(np.searchsorted(self._ends, row, side="right"))
        values = self._values[chunk]
        offsets = self._offsets[chunk]
        place = row - self._firsts[chunk]
        return values[offsets[place] : offsets[place + 1]]


class EndlessStream(torch.utils.data.IterableDataset):
    """Repeats a stream without end, in optimizer steps of texts of similar length that come in random order.

    Texts are read into pools of `pool_batches` optimizer steps, sorted by length within each pool, divided into steps,
    and the steps shuffled. Texts that fill no step are carried over to the next epoch, so that all steps are full. The
    order is a pure function of seed, epoch, worker and the order of the stream: without workers, neither the number of
    processes nor accumulation changes the texts of a step. Every process reads the whole stream, and accelerate gives
    it its part of each batch.

    The Trainer does not know where an epoch of a stream ends. Each example therefore has a field `epoch`, so that
    masks change from epoch to epoch, and a resumed run that skips examples continues with the same ones. It also has a
    field `step`, which is exact with several workers, too, as long as each of them has a share of the files.

    Args:
        stream: Examples; its `set_epoch` sets the order of an epoch.
        batch_size: Number of texts in a batch of all processes together.
        batches_per_step: Number of these batches in an optimizer step: gradient accumulation.
        source: Where the texts are read from, for error messages.
        seed: Seed of the order of the steps.
        pool_batches: Number of steps that are sorted together.
    """

    def __init__(
        self,
        stream: IterableDataset,
        batch_size: int,
        batches_per_step: int = 1,
        source: Source = _UNNAMED_STREAM,
        seed: int = 0,
        pool_batches: int = 50,
    ):
        self.stream = stream
        self.batch_size = batch_size
        self.batches_per_step = batches_per_step
        self.source = source
        self.seed = seed
        self.pool_batches = pool_batches
        self._texts_per_step = batch_size * batches_per_step

    def __iter__(self) -> Iterator[Example]:
        worker, num_workers = self._place_among_workers()
        batch_numbers = itertools.count(worker, num_workers)
        rest = []
        # Workers share the epoch of a stream but are not always in the same one: each has a copy of its own.
        stream = self.stream.with_format(None)
        for epoch in itertools.count():
            stream.set_epoch(epoch)
            texts = self._read_epoch(stream, epoch)
            first = next(texts, None)
            if first is None:  # a worker without a share of the files would search forever
                return
            generator = np.random.default_rng([self.seed, epoch, worker])
            waiting = itertools.chain(rest, [first], texts)
            for pool in self._pools(waiting):
                steps, rest = self._cut_into_steps(pool, generator)
                ordered = itertools.chain.from_iterable(steps)
                for place, text in enumerate(ordered):
                    if place % self.batch_size == 0:
                        step = next(batch_numbers) // self.batches_per_step
                    yield {**text, "step": step}

    def _place_among_workers(self) -> tuple[int, int]:
        """Index of this worker, and the number of workers that have files to read."""
        info = torch.utils.data.get_worker_info()
        if info is None:
            return 0, 1
        # Workers beyond the number of files have nothing to read.
        return info.id, min(info.num_workers, self.stream.num_shards)

    def _read_epoch(self, stream: IterableDataset, epoch: int) -> Iterator[Example]:
        for example in read_rows(stream, self.source):
            yield {**example, "epoch": epoch}

    def _pools(self, texts: Iterator[Example]) -> Iterator[list[Example]]:
        size = self._texts_per_step * self.pool_batches
        pool = list(itertools.islice(texts, size))
        while pool:
            yield pool
            pool = list(itertools.islice(texts, size))

    def _cut_into_steps(
        self,
        pool: list[Example],
        generator: np.random.Generator,
    ) -> tuple[list[list[Example]], list[Example]]:
        """Divides a pool into steps of similar length, in random order, and the texts that fill no step."""
        num_steps = len(pool) // self._texts_per_step
        in_steps = num_steps * self._texts_per_step
        lengths = [len(text["input_ids"]) for text in pool[:in_steps]]
        order = np.argsort(lengths, kind="stable")
        rows = order.reshape(num_steps, self._texts_per_step)
        steps = []
        for step in generator.permutation(rows):
            steps.append([pool[row] for row in step])
        return steps, pool[in_steps:]
