"""Calls operations with arbitrary arguments: each equals the reference or is refused by name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import reference
import reference_table
import torch
from cases import SCORES, WEIGHTS, Array, same, values
from hypothesis import strategies as st
from torch import Tensor

from dynloader import ops

Arguments = dict[str, Any]
MOST = 3000  # samples; larger selections have their own tests

seeds = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1]))
epochs = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1]))
sizes = st.one_of(st.integers(0, 40), st.integers(0, MOST))


@st.composite
def numbers(draw: st.DrawFn, families: tuple[str, ...], n: int) -> Tensor:
    """Draw scores or weights of any kind, in any order."""
    made = values(draw(st.sampled_from(families)), n)
    return torch.from_numpy(np.roll(made, draw(st.integers(0, max(0, n - 1)))))


@st.composite
def addresses(draw: st.DrawFn) -> Arguments:
    epoch: Any = draw(epochs)
    if draw(st.integers(0, 3)) == 0:
        epoch = torch.tensor([epoch])
    return {"seed": draw(seeds), "epoch": epoch}


@st.composite
def ranges(draw: st.DrawFn, n: int) -> Arguments:
    start = draw(st.integers(0, n))
    return {"start": start, "stop": draw(st.integers(start, min(n, start + MOST)))}


@st.composite
def indices(draw: st.DrawFn, n: int, most: int = 200) -> Tensor:
    count = draw(st.integers(0, most)) if n else 0
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return torch.from_numpy(generator.integers(0, max(1, n), count))


def counts_for(generator: np.random.Generator, index: Tensor) -> Tensor:
    """Return a count for each entry of the index, the same for all entries of a sample."""
    of_each = generator.integers(0, 3, 1 + int(index.max()) if len(index) else 1)
    return torch.from_numpy(of_each)[index]


@st.composite
def reducible(draw: st.DrawFn, index: Tensor, generator: np.random.Generator) -> Arguments:
    """Draw losses for an index with duplicates, in each form."""
    b = len(index)
    form = draw(st.sampled_from(["entries", "rows", "sequences"]))
    given: Arguments = {"index": index % draw(st.sampled_from([1, 7, MOST]))}
    shape: tuple[int, ...] = (b,)
    if form == "rows":
        shape = (b, *draw(st.sampled_from([(0,), (1,), (5,), (2, 3)])))
    if form == "sequences":
        lengths = generator.integers(0, draw(st.sampled_from([1, 4, 30])), b)
        dtype = draw(st.sampled_from([np.int32, np.int64]))
        given["cu_seqlens"] = torch.from_numpy(np.append(0, np.cumsum(lengths)).astype(dtype))
        shape = (int(lengths.sum()),)
    elif draw(st.booleans()):
        given["mask"] = torch.from_numpy(
            generator.random(shape) < draw(st.sampled_from([0.1, 0.7]))
        )
    count = math.prod(shape)
    losses = np.roll(values(draw(st.sampled_from(SCORES)), count), draw(st.integers(0, count)))
    with np.errstate(invalid="ignore"):
        losses = losses * np.float32(draw(st.sampled_from([1, 1, 2.0**30])))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    return given | {
        "losses": torch.from_numpy(losses).reshape(shape).to(dtype),
        "reduce": draw(st.sampled_from(["max", "mean", "sum"])),
        "num_clamped": draw(st.sampled_from([None, torch.tensor([5])])),
    }


@st.composite
def arguments_of(draw: st.DrawFn, op: str) -> Arguments:
    """Draw arguments that the operation must accept."""
    n = draw(sizes)
    if op in ("top_k", "epsilon_greedy"):
        k = draw(st.integers(0, n))
        given = {"scores": draw(numbers(SCORES, n)), "k": k, **draw(addresses())}
        return given if op == "top_k" else given | {"num_random": draw(st.integers(0, k))}
    if op == "info_batch":
        given = {"scores": draw(numbers(SCORES, n)), **draw(addresses())}
        given["drop_probability"] = r = draw(st.floats(0, 1, exclude_max=True))
        num_kept = draw(st.one_of(st.none(), st.integers(1, max(1, n))))
        if num_kept is None or n == 0:
            return given
        # At least one candidate must remain to represent those dropped.
        dropped = n - num_kept
        is_possible = dropped == 0 or (r > 0 and dropped < math.ceil(min(n, dropped / r)))
        return given | {"num_kept": num_kept if is_possible else n}
    if op in ("sample", "priority_sample"):
        weights = draw(numbers(WEIGHTS, n))
        k = draw(st.integers(0, int((weights > 0).sum())))
        return {"weights": weights, "k": k, **draw(addresses())}
    if op == "order":
        selected = draw(indices(MOST))
        if draw(st.booleans()):
            selected = selected.int()
        return {"selected": selected, **draw(ranges(len(selected))), **draw(addresses())}
    if op == "gather":
        shape, dtype = draw(st.sampled_from([((), torch.float32), ((3,), torch.uint8)]))
        data = torch.arange(n * math.prod(shape)).reshape(n, *shape).to(dtype)
        selected = draw(st.one_of(st.none(), indices(n)))
        count = n if selected is None else len(selected)
        return {"data": data, "selected": selected, **draw(ranges(count)), **draw(addresses())}
    if op in ("subset", "positions"):
        n = draw(st.one_of(sizes, st.integers(0, 2**63 - 1)))
        return {"n": n, **draw(ranges(n)), **draw(addresses())}
    if op == "score_mean":
        return {"scores": draw(numbers(SCORES, n))}
    if op == "power_weights":
        exponent = draw(st.floats(0, 1e300))
        offset = draw(st.one_of(st.just(0.0), st.floats(1e-300, 1e300)))
        return {"scores": draw(numbers(SCORES, n)), "exponent": exponent, "offset": offset}
    if op == "spread":
        selected = torch.randperm(n, generator=torch.Generator().manual_seed(n))
        selected = selected[: draw(st.integers(0, n))]
        used = draw(st.integers(0, len(selected)))
        return {
            "values": draw(numbers(SCORES, len(selected))),
            "selected": selected,
            "n": n,
            "rest": draw(st.floats(width=32, allow_nan=False)),
            "num_used": draw(st.sampled_from([None, torch.tensor([used])])),
        }
    index, faults = draw(indices(n)), torch.zeros(2, dtype=torch.int64)
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    if op == "reduce_by_index":
        return draw(reducible(index, generator)) | {"faults": draw(st.sampled_from([None, faults]))}
    if op == "count_selected":
        counts = torch.from_numpy(generator.integers(0, 100, n, np.int32))
        return {"counts": counts, "selected": index, "faults": faults}
    if op == "update_forgetting":
        state = torch.from_numpy(generator.integers(0, 2**29, n, np.int32))
        correct = torch.from_numpy(generator.random(len(index)) < 0.5)
        given = {"state": state, "index": index, "correct": correct, "faults": faults}
        return given | {"counts": draw(st.none() | st.just(counts_for(generator, index)))}
    records = generator.standard_normal((n, 4), np.float32).view(np.int32)
    records[:, 3] = generator.integers(0, 4, n)
    if op == "ucb_visits":
        c, t = draw(st.floats(0, 1e300)), draw(st.floats(1, 1e300))
        return {"records": torch.from_numpy(records), "c": c, "t": t}
    assert op == "update", op
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    return {
        "scores": torch.from_numpy(generator.standard_normal(n, np.float32)),
        "records": torch.from_numpy(records),
        "index": index,
        "losses": draw(numbers(SCORES, len(index))).to(dtype),
        "faults": faults,
        "rule": draw(st.sampled_from(ops.ScoreRule)),
        "alpha": draw(st.floats(2**-20, 1, width=32)),
        "c": draw(st.floats(0, 2.0**100, width=32)),
        "counts": draw(st.none() | st.just(counts_for(generator, index))),
    }


OPS = (
    "reduce_by_index",
    "top_k",
    "epsilon_greedy",
    "info_batch",
    "sample",
    "priority_sample",
    "order",
    "gather",
    "subset",
    "positions",
    "score_mean",
    "power_weights",
    "ucb_visits",
    "update",
    "update_forgetting",
    "count_selected",
    "spread",
)

# Replacements for a tensor: the same values stored differently, and other values.
OTHER_TENSORS: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: t.repeat_interleave(2, 0)[::2],
    lambda t: t[::2],
    lambda t: t[:1].expand(t.shape),
    lambda t: t[:0],
    lambda t: t[None],
    lambda t: t.reshape(-1)[:1].reshape(()) if t.numel() else t,
    lambda t: torch.cat([t, t]),
    lambda t: t.double(),
    lambda t: t.half(),
    lambda t: t.to(torch.int16),
    lambda t: t.to(torch.complex64),
    lambda t: t.clone().requires_grad_() if t.is_floating_point() else t.bool(),
    lambda t: t.to_sparse() if t.ndim else t,
    lambda t: t.to("meta"),
    lambda t: t + 1 if t.dtype != torch.bool else ~t,
    lambda t: t.numpy(),
    lambda t: t.tolist(),
    lambda t: None,
    lambda t: "cpu",
)
# Not for the tensors of a table, whose visits are never negative.
NEGATIVE_TENSORS: tuple[Callable[[Tensor], Any], ...] = (
    lambda t: torch._neg_view(t - 0),  # raises for bool, which cannot be negated
    lambda t: -1 - t,
)
TABLE = ("records", "state", "counts")
# Results have at most MOST elements, because torch cannot allocate 2**60 of them.
OTHER_NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 0.5, 1.5, -0.5, 1e300, float("nan"), float("inf"), True, None, "1", [1]),
    *(-(2**63), -(2**63) - 1, 2**63, 2**64, 2**64 - 1, 2**32, np.int64(2), np.float32(0.25)),
    *(torch.tensor(1), torch.tensor([1]), torch.tensor([2**40]), torch.tensor([-1])),
)


@st.composite
def calls(draw: st.DrawFn, op: str) -> tuple[Arguments, bool]:
    """Draw arguments, and whether they must be accepted."""
    arguments = draw(arguments_of(op))
    if draw(st.integers(0, 2)) == 0:
        return arguments, True
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(arguments)))
        if isinstance(arguments[name], Tensor) and name not in ("epoch", "num_used"):
            with contextlib.suppress(
                RuntimeError, TypeError, IndexError
            ):  # not possible for every tensor
                others = OTHER_TENSORS + (() if name in TABLE else NEGATIVE_TENSORS)
                arguments[name] = draw(st.sampled_from(others))(arguments[name])
        else:
            arguments[name] = draw(st.sampled_from(OTHER_NUMBERS))
    return arguments, False


def on_host(value: Any) -> Any:
    """Return an argument as the reference expects it."""
    if isinstance(value, np.integer):
        return int(value)
    if not isinstance(value, Tensor):
        return value
    value = value.detach().resolve_neg()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy().copy()


def expected(op: str, given: Arguments) -> tuple[list[Array], dict[str, Array]]:
    """Return the results of the operation and the tensors that it changed."""
    given = {name: on_host(value) for name, value in given.items() if value is not None}
    address = {}
    for name in ("seed", "epoch"):
        if name in given:
            address[name] = int(np.asarray(given.pop(name)).reshape(-1)[0])
    if op in ("top_k", "epsilon_greedy", "sample", "order", "subset", "positions"):
        if op == "order" and not isinstance(given["selected"], np.ndarray):
            given["selected"] = np.arange(given["selected"])
        found = getattr(reference, op)(**given, **address)
        return [np.asarray(found, np.int64)], {}
    if op == "priority_sample":
        selected, tau = reference.priority_sample(**given, **address)
        return [selected, np.asarray(tau)], {}
    if op == "info_batch":
        return list(reference.info_batch(**given, **address)), {}
    if op == "gather":
        selected = given.pop("selected", None)
        given.pop("faults", None)
        return [reference.gather(**given, selected=selected, **address)], {}
    if op == "score_mean":
        return [np.asarray(value) for value in reference.score_mean(**given)], {}
    if op in ("power_weights", "ucb_visits"):
        return [getattr(reference_table, op)(**given)], {}
    if op == "spread":
        used = int(np.reshape(given.get("num_used", len(given["selected"])), -1)[0])
        result = np.full(given["n"], given["rest"], np.float32)
        result[given["selected"][:used]] = given["values"][:used]
        return [result], {}
    given.pop("faults", None)
    if op == "reduce_by_index":
        counted = given.pop("num_clamped", None)
        *found, num_clamped = reference_table.reduce_by_index(**given)
        changed = {} if counted is None else {"num_clamped": np.asarray(counted + num_clamped)}
        return [found[0], found[1], np.array([found[2]])], changed
    getattr(reference_table, op)(**given)
    written = {"update": ("scores", "records"), "update_forgetting": ("state",)}
    return [], {name: given[name] for name in written.get(op, ("counts",))}


def plain(tensor: Tensor) -> Tensor:
    """Return a contiguous copy of the values."""
    return tensor.detach().resolve_neg().clone(memory_format=torch.contiguous_format)


def raw(tensor: Tensor) -> bytes:
    return plain(tensor).reshape(-1).view(torch.uint8).numpy().tobytes()


def same_value(found: Tensor | None, wanted: Array, *what: object) -> None:
    """Compare as ``same``, but None stands for ones, and a NaN mean may have any bits."""
    if found is None:
        assert (wanted == 1).all(), what
    elif wanted.ndim == 0 and wanted.dtype == np.float64 and np.isnan(wanted):
        assert np.isnan(float(found)), what
    else:
        same(found, wanted, *what)


def refused(op: str, arguments: Arguments) -> tuple[Exception | None, Any]:
    """Return the error, or the result if there is none."""
    try:
        return None, getattr(ops, op)(**arguments)
    except (TypeError, ValueError, IndexError, NotImplementedError, RuntimeError) as error:
        return error, None


def check_call(op: str, arguments: Arguments, must_be_accepted: bool) -> bool:
    """Make the call, check it, and return whether it was accepted.

    Raises:
        AssertionError: the result is not the reference's, a refusal does not begin with the name of
            the operation, or a tensor was changed that should not be.
    """
    tensors = {name: t for name, t in arguments.items() if isinstance(t, Tensor)}
    stored = {name: t for name, t in tensors.items() if t.layout == torch.strided and not t.is_meta}
    before = {name: plain(t) for name, t in stored.items()}
    changed: dict[str, Array] = {}
    error, found = refused(op, arguments)
    if error is not None and len(stored) < len(tensors):
        pass  # without values there is little to check, and the message is torch's
    elif error is not None and "can't allocate memory" in str(error):
        assert not must_be_accepted, (op, error)
    elif error is not None:
        assert not must_be_accepted, (op, error)
        assert isinstance(error, TypeError | ValueError | IndexError), (op, error)
        assert str(error).startswith(f"{op}: "), (op, error)
        assert "must" in str(error), (op, error)
    elif len(stored) == len(tensors):  # tensors without values have results without values
        with np.errstate(all="ignore"):
            wanted, changed = expected(op, arguments | before)
        results = [] if found is None else [found] if isinstance(found, Tensor) else [*found]
        results = [result for result in results if result is not None]
        for i, (result, other) in enumerate(zip(results, wanted, strict=True)):
            same_value(result, other, op, i)
    for name, tensor in stored.items():
        left = torch.from_numpy(changed[name]) if name in changed else before[name]
        assert raw(tensor) == raw(left), (op, name)
    return error is None
