"""Streams of samples that have no length: generators, iterables, torch's IterableDataset."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from .errors import DataError
from .order import mix_seed
from .samples import HEAD, Batch, Collate

BUFFER = 4096  # our choice: enough to mix, a few hundred MB of images of 64 pixels


class Stream:
    """Samples x or (x, cond), as in Samples, from anything that can be iterated.

    source: a function that returns an iterator, or an object that can be iterated anew (both may go on for ever or
        end, which ends an epoch); or an iterator or generator, which can be read only once.
    buffer: samples that are drawn at a time and shuffled among themselves; 1 keeps the order of the source.
    A resumed run reads and drops what it has seen: exact if the source gives the same samples again.
    `len` and `batch` know the first 64 samples only, for checks and pictures. Raises DataError naming the sample.
    """

    def __init__(
        self,
        source: Iterable[Any] | Callable[[], Iterator[Any]],
        *,
        classes: int | None = None,
        class_names: Sequence[str] | None = None,
        image: bool | None = None,
        buffer: int = BUFFER,
    ) -> None:
        if buffer < 1:
            raise DataError(f"buffer must be 1 or more, got {buffer}; 1 keeps the order of the stream")
        self.source = getattr(source, "__name__", type(source).__name__)
        self._begin, self._buffer = _beginning(source, self.source), buffer
        first = self._begin()
        head = list(islice(first, HEAD))
        if not head:
            raise DataError(
                f"{self.source}: the stream gave no sample; a generator can be read only once, so make it anew"
            )
        if isinstance(source, Iterator):
            self._begin = _once(chain(head, first), self.source)
        self.collate = Collate(self.source, head, image)
        self.shape, self.is_bytes = self.collate.shape, self.collate.is_bytes
        self.class_names = None if class_names is None else tuple(class_names)
        self.classes = len(self.class_names) if classes is None and self.class_names is not None else classes

    def __len__(self) -> int:
        return len(self.collate.head)

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Some of the first samples float32 [B, *shape] and their conditions."""
        return self.collate([self.collate.head[i] for i in torch.as_tensor(indices, dtype=torch.int64).tolist()])

    def batches(self, batch: int, *, seed: int, start: int) -> Generator[Batch, None, None]:
        """Batches without end, from the sample at position `start` of the shuffled stream on."""
        samples = self._shuffled(seed, start)
        while True:
            items = list(islice(samples, batch))
            yield self.collate(items, [f"sample {start + n}" for n in range(len(items))])
            start += batch

    def description(self) -> dict[str, Any]:
        """Kind, source, shape, classes, buffer and a fingerprint of the first 64 samples, ready for JSON."""
        return {
            "kind": "stream",
            "source": self.source,
            "length": None,
            "shape": list(self.shape),
            "classes": self.classes,
            "buffer": self._buffer,
            "fingerprint": self.collate.fingerprint,
        }

    def _shuffled(self, seed: int, skip: int) -> Iterator[Any]:
        """The samples from position `skip` on; what comes before is read and dropped."""
        generator, epoch = torch.Generator(device="cpu"), 0
        while True:
            samples, number = self._begin(), 0
            while block := list(islice(samples, self._buffer)):
                if skip < len(block):
                    generator.manual_seed(mix_seed(seed, epoch, number))
                    order = torch.randperm(len(block), generator=generator, device="cpu")
                    yield from (block[i] for i in order[skip:].tolist())
                skip = max(0, skip - len(block))
                number += 1
            if number == 0:
                raise DataError(f"{self.source}: the stream gave no sample when it was begun again; pass a function")
            epoch += 1


def _beginning(source: Any, name: str) -> Callable[[], Iterator[Any]]:
    """A function that begins the stream."""
    if isinstance(source, Iterator):
        return lambda: source
    if isinstance(source, Iterable):
        return lambda: iter(source)
    if not callable(source):
        raise DataError(f"{name} cannot be iterated; pass an iterable, or a function that returns an iterator")

    def begin() -> Iterator[Any]:
        made = source()
        if not isinstance(made, Iterable):
            raise DataError(f"{name}() returned {type(made).__name__}, wanted an iterator over samples")
        return iter(made)

    return begin


def _once(samples: Iterator[Any], name: str) -> Callable[[], Iterator[Any]]:
    """A function that gives the samples once and says so the second time."""
    given = False

    def begin() -> Iterator[Any]:
        nonlocal given
        if given:
            raise DataError(
                f"{name}: the stream has ended, and an iterator cannot be begun again; pass the function that makes "
                f"it, or an object that can be iterated anew"
            )
        given = True
        return samples

    return begin
