"""Wrong arguments are refused by name, with the requirement and the value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import same
from torch import Tensor

from dynloader import ops

N = 5
NAN, INF = float("nan"), float("inf")


def arguments_of(op: str, device: torch.device | str) -> dict[str, Any]:
    """Return arguments that the operation accepts."""
    scores = torch.arange(N, dtype=torch.float32, device=device) + 1
    records = torch.zeros(N, 4, dtype=torch.int32, device=device)
    index = torch.tensor([3, 1], device=device)
    faults = torch.zeros(2, dtype=torch.int64, device=device)
    counts = torch.zeros(N, dtype=torch.int32, device=device)
    losses = torch.tensor([0.5, 2.5], device=device)
    correct = torch.tensor([True, False], device=device)
    address = {"seed": 1, "epoch": 2}
    return {
        "top_k": {"scores": scores, "k": 2, **address},
        "epsilon_greedy": {"scores": scores, "k": 3, "num_random": 1, **address},
        "info_batch": {"scores": scores, "drop_probability": 0.5, "num_kept": None, **address},
        "sample": {"weights": scores, "k": 2, **address},
        "priority_sample": {"weights": scores, "k": 2, **address},
        "order": {"selected": index, "start": 0, "stop": 2, **address},
        "subset": {"n": N, "start": 0, "stop": 2, **address, "device": device},
        "score_mean": {"scores": scores},
        "power_weights": {"scores": scores, "exponent": 0.5, "offset": 0.1},
        "ucb_visits": {"records": records, "c": 1.0, "t": 10.0},
        "pass_scores": {
            "passes": torch.zeros(N, 4, dtype=torch.int32, device=device),
            "retry_easy": 0.5,
            **address,
        },
        "update": {
            "scores": scores,
            "records": records,
            "index": index,
            "losses": losses,
            "faults": faults,
            "rule": 2,
            "alpha": 0.8,
            "c": 1.0,
        },
        "update_forgetting": {
            "state": counts,
            "index": index,
            "correct": correct,
            "faults": faults,
        },
        "count_selected": {"counts": counts, "selected": index, "faults": faults},
    }[op]


OPS = (
    "top_k",
    "epsilon_greedy",
    "info_batch",
    "sample",
    "priority_sample",
    "order",
    "subset",
    "score_mean",
    "power_weights",
    "ucb_visits",
    "pass_scores",
    "update",
    "update_forgetting",
    "count_selected",
)


def refuse(
    device: torch.device | str,
    op: str,
    error: type[Exception],
    shown: str,
    **wrong: Any,
) -> None:
    """Check that the error names the operation, the argument and its value, and changes nothing."""
    arguments = {**arguments_of(op, device), **wrong}
    tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
    before = {name: x.clone() for name, x in tensors.items()}
    name = next(iter(wrong))
    # The first line is ours. A stack trace by torch may follow.
    pattern = rf"\A{op}: ([^\n]* and )?{name}\b[^\n]*got [^\n]*{re.escape(shown)}"
    with pytest.raises(error, match=pattern) as caught:
        getattr(ops, op)(**arguments)
    assert type(caught.value) is error
    for name, x in tensors.items():
        same(x, before[name].cpu().numpy(), op, name)


def tensor_arguments(op: str) -> list[str]:
    return [name for name, x in arguments_of(op, "cpu").items() if isinstance(x, Tensor)]


@pytest.mark.parametrize("op", OPS)
def test_the_arguments_are_accepted(op: str, device: torch.device) -> None:
    getattr(ops, op)(**arguments_of(op, device))


@pytest.mark.parametrize("op", OPS)
def test_not_a_tensor(op: str, device: torch.device) -> None:
    for name in tensor_arguments(op):
        refuse(device, op, TypeError, "list", **{name: [1.0, 2.0]})
        refuse(device, op, TypeError, "ndarray", **{name: np.zeros(N, np.float32)})
        refuse(device, op, TypeError, "NoneType", **{name: None})


@pytest.mark.parametrize("op", OPS)
def test_wrong_dtype(op: str, device: torch.device) -> None:
    for name in tensor_arguments(op):
        right = arguments_of(op, device)[name]
        for dtype, shown in ((torch.int16, "int16"), (torch.complex64, "complex64")):
            refuse(device, op, TypeError, shown, **{name: right.to(dtype)})
        if name in ("scores", "weights"):
            refuse(device, op, TypeError, "float64", **{name: right.double()})
            refuse(device, op, TypeError, "float16", **{name: right.half()})
        elif name != "selected" or op != "order":
            wrong, shown = (
                (right.float(), "float32") if name != "losses" else (right.long(), "int64")
            )
            refuse(device, op, TypeError, shown, **{name: wrong})


@pytest.mark.parametrize("op", OPS)
def test_wrong_shape(op: str, device: torch.device) -> None:
    for name in tensor_arguments(op):
        right = arguments_of(op, device)[name]
        if name in ("records", "passes"):
            for wrong in (right[:, :3].contiguous(), right.flatten(), right[None]):
                shown = str(list(wrong.shape))
                refuse(device, op, ValueError, shown, **{name: wrong})
        elif name == "faults":
            refuse(device, op, ValueError, "3", **{name: right.new_zeros(3)})
        else:
            refuse(device, op, ValueError, str([1, len(right)]), **{name: right[None]})
            refuse(device, op, ValueError, "[]", **{name: right[0]})


def test_lengths_that_do_not_match(device: torch.device) -> None:
    three = torch.zeros(3, device=device)
    refuse(device, "update", ValueError, "3", losses=three)
    refuse(device, "update_forgetting", ValueError, "3", correct=three.bool())
    records = torch.zeros(N + 1, 4, dtype=torch.int32, device=device)
    refuse(device, "update", ValueError, f"[{N + 1}, 4]", records=records)


def test_a_count_of_updates_that_cannot_be_raised(device: torch.device) -> None:
    count = torch.zeros(1, dtype=torch.int64, device=device)
    refuse(device, "update", TypeError, "list", num_updates=[0])
    refuse(device, "update", TypeError, "int32", num_updates=count.int())
    refuse(device, "update", ValueError, "2", num_updates=count.new_zeros(2))


def test_tables_that_are_not_contiguous(device: torch.device) -> None:
    wide = torch.zeros(N, 8, dtype=torch.int32, device=device)
    pairs = torch.zeros(2, 2, dtype=torch.int64, device=device)
    floats = torch.zeros(2 * N, device=device)
    refuse(device, "update", ValueError, "[2]", scores=floats[::2])
    refuse(device, "update", ValueError, "[8, 1]", records=wide[:, :4])
    refuse(device, "update", ValueError, "[1, 5]", records=wide.view(8, N)[:4].t())
    refuse(device, "update", ValueError, "[2]", faults=pairs[:, 0])
    refuse(device, "update_forgetting", ValueError, "[8]", state=wide[:, 0])
    refuse(device, "count_selected", ValueError, "[8]", counts=wide[:, 0])


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("top_k", "k"),
        ("epsilon_greedy", "k"),
        ("sample", "k"),
        ("priority_sample", "k"),
        ("info_batch", "num_kept"),
    ],
)
def test_counts_out_of_range(op: str, name: str, device: torch.device) -> None:
    for value in (-1, N + 1, 2**40, -(2**40)):
        refuse(device, op, ValueError, str(value), **{name: value})


def test_num_random_out_of_range(device: torch.device) -> None:
    for value in (-1, 4):
        refuse(device, "epsilon_greedy", ValueError, str(value), num_random=value)


def test_drop_probability_out_of_range(device: torch.device) -> None:
    for value in (-0.25, 1.0, 1.5, INF, -INF):
        refuse(device, "info_batch", ValueError, f"{value:g}", drop_probability=value)
    # Probability 0 would drop no sample, and no probability below 1 drops all.
    refuse(device, "info_batch", ValueError, "0", drop_probability=0.0, num_kept=4)
    arguments = {**arguments_of("info_batch", device), "drop_probability": 0.0, "num_kept": 4}
    with pytest.raises(ValueError, match=rf"must be in \(0, 1\) if num_kept < {N}, got 0"):
        ops.info_batch(**arguments)
    refuse(device, "info_batch", ValueError, "0", num_kept=0)


@pytest.mark.parametrize("op", ["sample", "priority_sample"])
def test_invalid_weights(op: str, device: torch.device) -> None:
    for bad in (NAN, -NAN, INF, -INF, -1.0, -1e-45):
        weights = torch.tensor([1.0, bad, 2.0, bad, 3.0], device=device)
        refuse(device, op, ValueError, "2", weights=weights)
    zeros = torch.tensor([0.0, -0.0, 2.0, 0.0, 0.0], device=device)
    refuse(device, op, ValueError, "1", weights=zeros)
    refuse(device, op, ValueError, "0", weights=torch.zeros(N, device=device))


@pytest.mark.parametrize("op", ["order", "subset"])
def test_slices_out_of_range(op: str, device: torch.device) -> None:
    end = 2 if op == "order" else N
    refuse(device, op, ValueError, "-1", start=-1)
    refuse(device, op, ValueError, str(end + 1), stop=end + 1)
    refuse(device, op, ValueError, "2", start=2, stop=1)
    refuse(device, op, ValueError, str(end + 1), start=end + 1, stop=end + 1)


def test_negative_sizes() -> None:
    refuse("cpu", "subset", ValueError, "-1", n=-1)
    refuse("cpu", "order", ValueError, "-1", selected=-1)


@pytest.mark.parametrize("op", OPS[:7])
def test_seed_and_epoch_out_of_range(op: str, device: torch.device) -> None:
    for value in (-1, 2**64, 2**70):
        refuse(device, op, ValueError, str(value), seed=value)
    for value in (-1, 2**32, 2**63 - 1):
        refuse(device, op, ValueError, str(value), epoch=value)
    for name in ("seed", "epoch"):
        for value, shown in ((True, "bool"), (1.0, "float"), (None, "NoneType"), ("1", "str")):
            refuse(device, op, TypeError, shown, **{name: value})


@pytest.mark.parametrize("op", OPS)
def test_not_an_int(op: str, device: torch.device) -> None:
    names = {"k", "num_random", "num_kept", "start", "stop", "n", "rule"}
    for name in names & arguments_of(op, device).keys():
        for value in (True, 1.0, "1", torch.tensor(1)):
            refuse(device, op, TypeError, type(value).__name__, **{name: value})


@pytest.mark.parametrize("op", OPS)
def test_not_a_number(op: str, device: torch.device) -> None:
    names = {"drop_probability", "exponent", "offset", "c", "t", "alpha"}
    for name in names & arguments_of(op, device).keys():
        refuse(device, op, ValueError, "nan", **{name: NAN})
        for value in (True, "1", None, torch.tensor(1.0)):
            refuse(device, op, TypeError, type(value).__name__, **{name: value})


@pytest.mark.parametrize(
    ("op", "name", "values"),
    [
        ("power_weights", "exponent", (-0.5, INF, -INF)),
        ("power_weights", "offset", (-0.5, 1e-310, INF, -INF)),
        ("ucb_visits", "c", (-0.5, INF, -INF)),
        ("ucb_visits", "t", (0.5, 0.0, -1.0, INF)),
        ("update", "alpha", (0.0, -0.5, 1e-50, 1.5, INF)),
        ("update", "c", (-0.5, 1e300, INF, -INF)),
    ],
)
def test_numbers_out_of_range(
    op: str, name: str, values: tuple[float, ...], device: torch.device
) -> None:
    for value in values:
        refuse(device, op, ValueError, f"{value:g}", **{name: value})


def test_rule_out_of_range(device: torch.device) -> None:
    for value in (-1, len(ops.ScoreRule)):
        refuse(device, "update", ValueError, str(value), rule=value)


@pytest.mark.parametrize(
    ("op", "name"),
    [("update", "index"), ("update_forgetting", "index"), ("count_selected", "selected")],
)
def test_index_out_of_range(op: str, name: str) -> None:
    for bad in (-1, N, 2**40, -(2**63), 2**63 - 1):
        for index in ([1, bad], [bad, 1]):
            refuse("cpu", op, IndexError, str(bad), **{name: torch.tensor(index)})


@pytest.mark.parametrize(
    ("op", "name", "table"),
    [
        ("update", "index", "scores"),
        ("update_forgetting", "index", "state"),
        ("count_selected", "selected", "counts"),
    ],
)
@pytest.mark.cuda
def test_on_cuda_an_index_out_of_range_is_left_out_and_counted(
    op: str, name: str, table: str, cuda: torch.device
) -> None:
    call: Callable[..., None] = getattr(ops, op)
    for bad, highest in ((-1, -1), (N, N), (2**40, 2**40)):
        right, wrong = arguments_of(op, cuda), arguments_of(op, cuda)
        alone = {k: v[:1] if k in (name, "losses", "correct") else v for k, v in right.items()}
        call(**alone)
        call(**{**wrong, name: torch.tensor([3, bad], device=cuda)})
        same(wrong[table], right[table].cpu().numpy(), op, bad)
        assert wrong["faults"].tolist() == [1, highest]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.cuda
def test_tensors_on_two_devices(op: str, cuda: torch.device) -> None:
    names = tensor_arguments(op)
    for name in names[1:]:
        elsewhere = arguments_of(op, "cpu")[name]
        refuse(cuda, op, ValueError, "cpu", **{name: elsewhere})
    if op == "update":
        refuse(cuda, op, ValueError, "cpu", num_updates=torch.tensor([0]))
