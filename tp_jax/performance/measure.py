"""Measure several contenders in turn, so that a machine whose speed changes is fair to all."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, Protocol

import jax

from tp_jax.messages.errors import first_line
from tp_jax.messages.progress import progress_bar, say


class Failed(Exception):
    """A contender can't run here; the message says why in one line."""


class Run(Protocol):
    """A contender that is compiled and warmed up."""

    def seconds(self, calls: int) -> float:
        """Return the seconds that so many calls take, until their results are there."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what else is known about it, such as bytes of memory, for its row."""
        ...

    def close(self) -> None:
        """Free its memory."""
        ...


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something to measure.

    Attributes:
      name: what runs, unique in its group, such as "thinking only".
      prepare: compiles and warms up. It may raise `Failed`.
      by: whose code it is.
      images: images of one call; 0 if it processes none.
      flops: analytic FLOPs of one call, over all devices; 0 if they aren't known.
      compare_to: names of contenders of the group that its time is divided by.
      derive: returns more facts from the seconds per call of each repetition of the group.
    """

    name: str
    prepare: Callable[[], Run]
    by: str = "tp_jax"
    images: int = 0
    flops: float = 0.0
    compare_to: tuple[str, ...] = ()
    derive: Callable[[Mapping[str, Sequence[float]]], dict[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Contenders that take turns.

    Attributes:
      name: of the group, unique in its benchmark.
      contenders: in the order of their turns.
    """

    name: str
    contenders: tuple[Contender, ...]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles of one or more values.

    Example:
      >>> spread([4.0, 1.0, 2.0, 3.0, 10.0])
      Spread(median=3.0, low=2.0, high=4.0)
    """
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratio(times: Sequence[float], reference: Sequence[float]) -> Spread:
    """Return the ratio of the medians, and quartiles of the ratios of each repetition.

    Args:
      times, reference: seconds of the same repetitions, which took turns.
    """
    pairs = spread([a / b for a, b in zip(times, reference, strict=True)])
    of_medians = statistics.median(times) / statistics.median(reference)
    return Spread(of_medians, pairs.low, pairs.high)


def measure_group(group: Group, repetitions: int, seconds: float) -> list[dict[str, Any]]:
    """Measure the contenders of a group in turn, repetition by repetition.

    Args:
      group: the group.
      repetitions: number of repetitions.
      seconds: the least time of a repetition; short calls are repeated.

    Returns:
      One row for each contender, see README.md. A contender that can't run has only "failed".
    """
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    calls: dict[str, int] = {}
    with ExitStack() as stack:
        for contender in group.contenders:
            say(f"{group.name}: preparing {_title(contender)} …")
            try:
                run = stack.enter_context(closing(contender.prepare()))
                # The first call may still allocate memory, or compile.
                calls[contender.name] = max(1, math.ceil(seconds / max(run.seconds(1), 1e-9)))
                runs[contender.name] = run
            except (Failed, RuntimeError) as error:
                failed[contender.name] = first_line(error)
                say(f"{group.name}: {_title(contender)} fails: {failed[contender.name]}")
        times = _take_turns(group.name, runs, calls, repetitions)
        facts = {name: run.facts() for name, run in runs.items()}
    rows = []
    for contender in group.contenders:
        row = {"group": group.name, "case": contender.name, "by": contender.by}
        if contender.name in failed:
            rows.append(row | {"failed": failed[contender.name]})
        else:
            rows.append(row | _row(contender, times, facts))
    return rows


def _title(contender: Contender) -> str:
    return contender.name if contender.by in contender.name else f"{contender.by} {contender.name}"


def _take_turns(
    title: str, runs: dict[str, Run], calls: dict[str, int], repetitions: int
) -> dict[str, list[float]]:
    """Return the seconds per call of each repetition."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with progress_bar(repetitions * len(runs), title, "run") as bar:
        for _ in range(repetitions):
            for name, run in runs.items():
                times[name].append(run.seconds(calls[name]) / calls[name])
                bar.update()
    return times


def _row(
    contender: Contender, times: dict[str, list[float]], facts: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    own = times[contender.name]
    found = spread(own)
    row: dict[str, Any] = {"seconds": dataclasses.asdict(found), "times": own}
    if contender.images:
        row["images_per_second"] = contender.images / found.median
    if contender.flops:
        row["flops"] = contender.flops
        row["flops_per_second"] = contender.flops / found.median
    row |= facts[contender.name]
    row["ratios"] = {
        name: dataclasses.asdict(ratio(own, times[name])) | _flops_ratio(row, facts[name])
        for name in contender.compare_to
        if name in times
    }
    return row | (contender.derive(times) if contender.derive else {})


def _flops_ratio(row: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    name = "program_flops"
    known = name in row and name in reference
    return {"flops": row[name] / reference[name]} if known else {}


class Timed:
    """A `Run` of a function in this process."""

    def __init__(
        self,
        call: Callable[[], Any],
        facts: dict[str, Any] | None = None,
        close: Callable[[], Any] | None = None,
    ) -> None:
        """Keep a function.

        Args:
          call: does the work and returns arrays, which are waited for.
          facts: for `facts`.
          close: is called at the end.
        """
        self._call: Callable[[], Any] | None = call
        self._facts, self._close = facts or {}, close

    def seconds(self, calls: int) -> float:
        """Call the function, and wait for what the last call returned."""
        if self._call is None:
            raise RuntimeError("the run is closed")
        started, found = time.perf_counter(), None
        for _ in range(calls):
            found = self._call()
        jax.block_until_ready(found)
        return time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        """Return the facts."""
        return self._facts

    def close(self) -> None:
        """Drop the function, and the arrays that it holds."""
        self._call = None
        if self._close:
            self._close()


class SelfTimed:
    """A `Run` of a function that returns its seconds, because not all that it does counts."""

    def __init__(self, once: Callable[[], float], close: Callable[[], Any] | None = None) -> None:
        """Keep a function, and another one that is called at the end."""
        self._once, self._close = once, close

    def seconds(self, calls: int) -> float:
        """Add the seconds of so many calls."""
        return sum(self._once() for _ in range(calls))

    def facts(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Call the other function."""
        if self._close:
            self._close()


class Stream:
    """A `Run` of an iterator that works ahead; one call is one batch of images."""

    def __init__(
        self,
        items: Iterator[Any],
        batch_size: int,
        count: Callable[[Any], int] = lambda item: 1,
    ) -> None:
        """Compile, and fill what works ahead, with the first two batches.

        Args:
          items: endless, or long enough.
          batch_size: images of one call.
          count: the number of images in an item.
        """
        self._items, self._batch_size, self._count = items, batch_size, count
        # Images that were taken, but belong to the next call.
        self._surplus = 0
        self.seconds(2)

    def seconds(self, calls: int) -> float:
        """Take the images of so many calls."""
        started, done = time.perf_counter(), self._surplus
        while done < calls * self._batch_size:
            done += self._count(next(self._items))
        self._surplus = done - calls * self._batch_size
        return time.perf_counter() - started

    def facts(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Let the iterator end its threads or processes."""
        close = getattr(self._items, "close", None)
        if close:
            close()
