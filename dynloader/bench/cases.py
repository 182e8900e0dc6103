"""The list of benchmark cases and sizes, shared by all commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

from dynloader.bench import epoch_cases, order_cases, select_cases
from dynloader.bench.case import Case

QUICK = (50_000, 1_280_000)
QUICK_ALSO = {"top_k": (10_000_000,)}
FULL = (50_000, 1_280_000, 10_000_000, 100_000_000)
HUGE = 1_000_000_000
# The size to show if there is room for only one: that of ImageNet, rounded.
USUAL = 1_280_000

Make = Callable[[int, str], list[Case]]


@dataclass(frozen=True)
class Operation:
    """An operation that the command line can select by name.

    Attributes:
        name: its name on the command line.
        makes: functions of n and a device; each makes the cases of one group.
        most: the largest n to measure.
        only: selects the sizes to measure; all by default.
        is_of_host: whether it runs only on the host, and so is measured only for "cpu".
    """

    name: str
    makes: Sequence[Make]
    most: int = HUGE
    only: Callable[[Sequence[int]], Sequence[int]] = field(default=lambda sizes: sizes)
    is_of_host: bool = False

    def groups(self, sizes: Sequence[int], device: str) -> Iterator[list[Case]]:
        """Yield the cases of each group."""
        if self.is_of_host and device != "cpu":
            return
        for make in self.makes:
            for n in self.only([n for n in sizes if n <= self.most]):
                yield make(n, device)


def usual(sizes: Sequence[int]) -> Sequence[int]:
    """Return the largest size up to the usual one, or the smallest size if all are larger."""
    return [max((n for n in sizes if n <= USUAL), default=min(sizes))] if sizes else []


def largest(sizes: Sequence[int]) -> Sequence[int]:
    """Return the largest size."""
    return [max(sizes)] if sizes else []


def and_vast(sizes: Sequence[int]) -> Sequence[int]:
    """Return the sizes, plus one that is too large for a permutation in memory."""
    return [*sizes, order_cases.VAST] if sizes else []


def _share(share: Fraction) -> Make:
    return lambda n, device: select_cases.top_k(n, device, share)


def _reselect(number: int) -> Make:
    return lambda n, device: epoch_cases.reselect(n, device, epoch_cases.POLICIES[number])


def _walk(kind: str) -> Make:
    return lambda n, _: epoch_cases.walk(n, kind)


def _update(batch: int) -> Make:
    return lambda n, device: order_cases.update(n, device, batch)


OPERATIONS: tuple[Operation, ...] = (
    Operation("top_k", [select_cases.top_k]),
    Operation("top_k-share", [_share(Fraction(1, 10)), _share(Fraction(9, 10))], only=usual),
    Operation("top_k-input", [select_cases.top_k_by_input], most=10_000_000, only=largest),
    Operation("epsilon_greedy", [select_cases.epsilon_greedy]),
    Operation("info_batch", [select_cases.info_batch]),
    Operation("sample", [select_cases.sample]),
    Operation("priority_sample", [select_cases.priority_sample]),
    Operation("score_mean", [select_cases.score_mean]),
    Operation("order", [order_cases.order]),
    Operation(
        "order-slice", [lambda n, _: order_cases.order_of_slice(n)], only=and_vast, is_of_host=True
    ),
    Operation("subset", [order_cases.subset]),
    Operation("update", [_update(1024), _update(128)]),
    Operation(
        "update-reduced",
        [order_cases.update_reduced, partial(order_cases.update_reduced, is_packed=True)],
        only=usual,
    ),
    Operation("reselect", [_reselect(0), _reselect(1)], most=100_000_000),
    Operation("epoch", [_walk("tensors"), _walk("lists")], most=10_000_000, is_of_host=True),
    Operation("replay", [epoch_cases.replay], most=10_000_000),
)
NAMES = tuple(operation.name for operation in OPERATIONS)


def groups(
    sizes: Sequence[int],
    devices: Sequence[str],
    names: Sequence[str] = NAMES,
    also: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[list[Case]]:
    """Yield the cases of each group, device by device.

    Args:
        sizes: numbers of samples.
        devices: among "cpu" and "cuda".
        names: names of the operations to measure.
        also: additional sizes for some operations, by name.
    """
    for device in devices:
        for operation in OPERATIONS:
            if operation.name in names:
                more = (also or {}).get(operation.name, ())
                yield from operation.groups(sorted({*sizes, *more}), device)
