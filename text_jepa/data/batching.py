"""The order in which texts, windows of documents and streams reach the collator."""

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
    """Order of one epoch in which the texts of a batch are about equally long and batches come at random.

    Texts are shuffled, cut into pools of `pool_batches` batches, sorted by length within each pool, cut into batches,
    and the batches shuffled; the texts that fill no batch come last. The order is a pure function of (seed, epoch,
    `batch_size`): unlike the sampler of transformers of the same name it draws from no running generator, so that a
    resumed run sees the same order. A batch is all that an optimizer step sees, however many processes and accumulated
    batches share it, see [`BatchesOfProcesses`]: their number does not change the order.

    Args:
        lengths: Tokens of each text.
        batch_size: Texts of an optimizer step.
        seed: Seed of the order.
        pool_batches: Batches that are sorted together: more pad less and are less random.
        with_steps: Whether to yield (step, row) for [`TextsWithSteps`] instead of rows. The step follows from epoch
            and place, so that workers, ranks and a resume see the same.
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
        self.lengths = np.asarray(lengths[:])  # a column of the datasets library would be asked row by row
        self.batch_size = min(batch_size, len(lengths) + 1)  # NumPy has no number as large as a flag may be
        self.seed = seed
        self.pool_batches = pool_batches
        self.with_steps = with_steps
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; called by the data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.drop_last:
            return self._in_batches
        return len(self.lengths)

    @property
    def _in_batches(self) -> int:
        """Number of texts that fill batches."""
        return len(self.lengths) // self.batch_size * self.batch_size

    def __iter__(self) -> Iterator[int] | Iterator[tuple[int, int]]:
        rows = self._order()[: len(self)].tolist()
        if not self.with_steps:
            return iter(rows)
        return self._with_steps(rows)

    def _order(self) -> np.ndarray:
        """(N,) row of each place."""
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        pool_size = self.batch_size * self.pool_batches
        pool = np.arange(len(order)) // pool_size
        by_pool_and_length = np.lexsort((self.lengths[order], pool))
        order = order[by_pool_and_length]
        in_batches = self._in_batches
        batches = order[:in_batches].reshape(-1, self.batch_size)
        shuffled = batches[generator.permutation(len(batches))]
        return np.concatenate([shuffled.flatten(), order[in_batches:]])

    def _with_steps(self, rows: list[int]) -> Iterator[tuple[int, int]]:
        steps_per_epoch = -(-len(rows) // self.batch_size)  # rounded up
        first_step = self.epoch * steps_per_epoch
        for place, row in enumerate(rows):
            yield first_step + place // self.batch_size, row


class BatchesOfProcesses(torch.utils.data.Sampler):
    """Cuts an order of texts into the batches of several processes, in turn: one of each, then the next of each.

    No text is repeated to fill a batch. The texts that are left for the last step of a pass are divided as evenly as
    they can be; only a process for which none is left repeats one.

    Args:
        order: Keys of the texts, in order.
        batch_size: Texts of a batch of one process.
        num_processes: Number of processes.
        batches_per_step: Batches that a process accumulates.
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
        """Chooses the epoch; called by the data loader."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        steps, left = divmod(len(self.order), self.texts_per_step)
        return steps * self._num_batches(self.texts_per_step) + self._num_batches(left)

    def __iter__(self) -> Iterator[list]:
        keys = iter(self.order)
        while texts := list(itertools.islice(keys, self.texts_per_step)):
            yield from self._cut(texts)

    def _num_batches(self, texts: int) -> int:
        """Batches of all processes that so many texts of a step make: a whole number for each."""
        rounds = -(-texts // (self.batch_size * self.num_processes))  # rounded up
        return rounds * self.num_processes

    def _cut(self, texts: list) -> Iterator[list]:
        num_batches = self._num_batches(len(texts))
        ends = [len(texts) * (number + 1) // num_batches for number in range(num_batches)]
        start = 0
        for number, end in enumerate(ends):
            yield texts[start:end] or [texts[number % len(texts)]]
            start = end


def share_without_repeats(shard: BatchSamplerShard, batches_per_step: int) -> None:
    """Lets processes share texts by [`BatchesOfProcesses`]; accelerate by itself repeats texts to fill batches.

    Args:
        shard: The sampler of a process's share of all batches, which is changed.
        batches_per_step: Batches that a process accumulates.
    """
    batches = shard.batch_sampler
    shard.batch_sampler = BatchesOfProcesses(
        batches.sampler,
        batches.batch_size,
        shard.num_processes,
        batches_per_step,
    )
    # Batches may differ in size; every process gets the same number.
    shard.batch_size = None
    shard.even_batches = False


def lengths_of(dataset: Dataset) -> Sequence[int]:
    """The number of tokens of each example: the column `length`, or counted if there is none."""
    try:
        return dataset["length"]
    except (KeyError, TypeError, ValueError):
        return [len(dataset[row]["input_ids"]) for row in range(len(dataset))]


class TextsWithSteps(torch.utils.data.Dataset):
    """A dataset with keys (step, row) beside its own: the example of such a key carries its `step`.

    Args:
        dataset: Map-style.
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
    """The windows of tokenized documents: each example has the whole document and the number of the window.

    The tokens of a document lie where the dataset has them in memory or on the disk; they are not copied for each of
    its windows.

    Args:
        documents: Examples of whole documents with `input_ids` and `length`, see `tokenize_documents`.
        window_length: Longest window in tokens, special tokens included.
        special_tokens: Number of special tokens around a text.
        max_windows: Number of windows to keep; all by default.
    """

    def __init__(
        self,
        documents: Dataset,
        window_length: int,
        special_tokens: int,
        max_windows: int | None = None,
    ):
        self.documents = documents
        lengths = np.asarray(documents["length"][:])
        counts = count_windows(lengths, window_length - special_tokens)
        first = np.cumsum(counts) - counts
        document = np.repeat(np.arange(len(counts)), counts)
        window = np.arange(len(document)) - first[document]
        self._document = document[:max_windows]
        self._window = window[:max_windows]
        self._length = lengths[self._document]
        self._tokens = _TokenLists(documents)

    def __len__(self) -> int:
        return len(self._document)

    @property
    def num_documents(self) -> int:
        """Number of documents that the windows belong to."""
        if len(self) == 0:
            return 0
        return int(self._document[-1]) + 1

    @property
    def num_tokens(self) -> int:
        """Number of tokens of these documents: in each pass, each is in one window."""
        return int(sum(self.documents["length"][: self.num_documents]))

    def __iter__(self) -> Iterator[Example]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, key: int | str) -> Any:
        """An example by its number; `"length"` gives the tokens of the document of each, (N,)."""
        if key == "length":
            return self._length
        input_ids = self._tokens[self._document[key]]
        return {"input_ids": input_ids, "window": int(self._window[key])}


class _TokenLists:
    """The column `input_ids` of a dataset as arrays, without the cost of a whole example for each."""

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
    """A stream that begins again when it ends, in steps of texts of similar length that come at random.

    Texts are drawn into pools of `pool_batches` optimizer steps, sorted by length within each, cut into steps, and the
    steps shuffled. What is left of an epoch, less than a step, waits for the first pool of the next one, so that
    all steps stay whole. The order is a pure function of seed, epoch, worker and what the stream gives: without
    workers, neither the number of processes nor accumulation changes what a step sees. Every process reads the whole
    stream, of which accelerate hands it its part of each batch.

    The Trainer does not know where an epoch of a stream ends: here each example carries the number of its `epoch`, so
    that masks change from epoch to epoch, and a resumed run that skips what it has seen arrives at the same place. It
    carries its `step` too, which is exact with workers, whose batches take turns, as long as all of them have a share
    of the files.

    Args:
        stream: Examples; its `set_epoch` chooses the order of an epoch.
        batch_size: Texts of a batch of all processes together; each has a part of similar length.
        batches_per_step: Such batches of one optimizer step: gradient accumulation.
        source: Where the texts are read from, for error messages.
        seed: Seed of the order of the steps.
        pool_batches: Steps that are sorted together.
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
        # All workers share the number of the epoch of a stream, and are not in the same one: each makes its own.
        stream = self.stream.with_format(None)
        for epoch in itertools.count():
            stream.set_epoch(epoch)
            texts = self._read_epoch(stream, epoch)
            first = next(texts, None)
            if first is None:  # a worker without a share of the files would search for ever
                return
            generator = np.random.default_rng([self.seed, epoch, worker])
            waiting = itertools.chain(rest, [first], texts)
            for pool in self._pools(waiting):
                steps, rest = self._cut_into_steps(pool, generator)
                for place, text in enumerate(itertools.chain.from_iterable(steps)):
                    if place % self.batch_size == 0:
                        step = next(batch_numbers) // self.batches_per_step
                    yield {**text, "step": step}

    def _place_among_workers(self) -> tuple[int, int]:
        """The number of this worker and of all workers that have something to read."""
        info = torch.utils.data.get_worker_info()
        if info is None:
            return 0, 1
        # Workers beyond the number of files have nothing to read and drop out.
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
        """Steps of texts of similar length in random order, and the texts at the end of the pool that fill none."""
        num_steps = len(pool) // self._texts_per_step
        in_steps = num_steps * self._texts_per_step
        lengths = [len(text["input_ids"]) for text in pool[:in_steps]]
        order = np.argsort(lengths, kind="stable")
        rows = order.reshape(num_steps, self._texts_per_step)
        steps = []
        for step in generator.permutation(rows):
            steps.append([pool[row] for row in step])
        return steps, pool[in_steps:]
