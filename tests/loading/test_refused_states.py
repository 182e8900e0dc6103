"""A damaged state raises ValueError, and nothing is changed."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from cases import plain
from ledger import Numbers, loss_of
from torch.utils.data import TensorDataset

from dynloader import (
    IES,
    UCB,
    DataLoader,
    EpsilonGreedy,
    Full,
    ImportanceGate,
    InfoBatch,
    Policy,
    ScoreTable,
    SelectiveBackprop,
)

N = 60
NAN, INF = float("nan"), float("inf")


def make(policy: Policy, **options: Any) -> DataLoader[int]:
    table = ScoreTable(N, "cpu")
    return DataLoader(Numbers(N), 4, policy=policy, table=table, seed=11, **options)


def begun(loader: DataLoader[int], num_batches: int = 3) -> DataLoader[int]:
    """Train two epochs and ``num_batches`` batches of the third, and return the loader."""
    for epoch in range(3):
        for index in itertools.islice(loader, num_batches if epoch == 2 else None):
            loader.update(loss_of(index), correct=index % (epoch + 1) == 0)
    return loader


def state_of(loader: Any) -> dict[str, Any]:
    """Return the state after saving and loading it."""
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def changed(place: Any, value: Any) -> Any:
    """Return a function that copies a tensor and sets ``place`` to ``value``."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[place] = value
        return tensor

    return change


def longer(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor[:1]])


def to(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


ANYTHING = [to(x) for x in ("text", b"bytes", [], [0], {}, 1j, np.arange(3), object())]
TENSORS = [to(torch.arange(3)), to(torch.tensor(0)), to(torch.tensor([]))]
NO_COUNTS = [to(x) for x in (-1, True, False, 0.0, 1.0, NAN, INF, None, 2**70)] + TENSORS + ANYTHING
NO_SECONDS = [to(x) for x in (-0.1, -1, NAN, INF, -INF, True, None, 10**400)] + TENSORS + ANYTHING
NO_TENSORS = [to(x) for x in (0, 1.5, True, [0.0] * N, [1] * N, np.zeros(N, np.float32))]
NO_TENSORS += [
    *(to(x) for x in ("text", {}, object())),
    lambda tensor: tensor.tolist(),
    lambda tensor: tensor.numpy(),
    lambda tensor: tensor.double(),
    lambda tensor: tensor.half() if tensor.is_floating_point() else tensor.short(),
    lambda tensor: tensor.unsqueeze(-1),
    lambda tensor: tensor.flatten()[0],
    lambda tensor: tensor[:0],
    lambda tensor: tensor.to("meta"),
    lambda tensor: tensor.to_sparse(),
    lambda tensor: torch.nested.nested_tensor([tensor[:2], tensor[2:]]),
]
OF_N = [longer, lambda tensor: tensor[:-1], to(None)]
NO_BOOL = [to(x) for x in (0, 1, None, 0.0)] + TENSORS + ANYTHING

# Invalid values for every key of a state, except for tensors and settings of the loader.
DAMAGES: dict[str, list[Callable[[Any], Any]]] = {
    "version": [to(x) for x in (0, 2, True, 1.5, None, torch.tensor(1), torch.tensor([1, 1]))]
    + ANYTHING,
    "policy": [to(x) for x in (None, "UCB", 1, UCB())] + TENSORS + ANYTHING,
    "batch_size": [to(x) for x in (5, True, None, 4.5)] + TENSORS + ANYTHING,
    "drop_last": [lambda flag: not flag, *NO_BOOL],
    "shuffle": [lambda flag: not flag, *NO_BOOL],
    "seed_each_sample": [lambda flag: not flag, *NO_BOOL],
    "blocks": [to(x) for x in ("3 blocks", 0, True)] + TENSORS + ANYTHING,
    "has_table": [lambda flag: not flag, *NO_BOOL],
    "steps_per_epoch": [to(x) for x in (1, 0, False)] + TENSORS + ANYTHING,
    "num_samples": [to(x) for x in (N - 1, None, "60")] + TENSORS + ANYTHING,
    "seed": [to(x) for x in (12, None, -1)] + TENSORS + ANYTHING,
    "epoch": [to(2**32), *NO_COUNTS],
    "step": [to(x) for x in (0, 1, 2, 3, 5, 8)] + NO_COUNTS,
    "start": [lambda x: x + 1, lambda x: x + 4 * N, *NO_COUNTS],
    "position": [
        *(lambda x, off=off: x + off for off in (1, 2, 3, -1, 4, -4, 4 * N)),
        *NO_COUNTS,
    ],
    "batch": [lambda x: x + 1, lambda x: x - 1, *NO_COUNTS],
    "is_exhausted": NO_BOOL,
    "checkpoint": [to(2**32), lambda x: x + 1, *NO_COUNTS],
    "select_seconds": NO_SECONDS,
    "update_seconds": NO_SECONDS,
    "epoch_seconds": NO_SECONDS,
    "table": [to(x) for x in (None, 0, True)] + TENSORS + ANYTHING,
    "indices": [
        *NO_TENSORS,
        to(None),
        lambda tensor: tensor.int(),
        changed(0, -1),
        changed(0, N),
        changed(-1, 2**62),
        lambda tensor: longer(tensor),
        lambda tensor: torch.zeros_like(tensor),
        lambda tensor: torch.arange(N + 1),
    ],
    "weights": [
        *NO_TENSORS,
        longer,
        lambda tensor: tensor[:-1],
        changed(0, NAN),
        changed(-1, INF),
        changed(1, -INF),
    ],
}
TABLE_DAMAGES: dict[str, list[Callable[[Any], Any]]] = {
    "version": DAMAGES["version"],
    "scores": [*NO_TENSORS, *OF_N, lambda tensor: tensor.int()],
    "records": [*NO_TENSORS, *OF_N, changed((3, 3), -1), lambda x: x[:, :3], lambda x: x.long()],
    "selections": [*NO_TENSORS, *OF_N, changed(5, -1), lambda x: x.long()],
    "forgetting": [*NO_TENSORS, *OF_N[:2], changed(5, -1), lambda x: x.long()],
    "history": [*NO_TENSORS, *OF_N[:2], lambda tensor: tensor[:, :0]],
    "num_selections": NO_COUNTS,
    "num_updates": NO_COUNTS,
}
LOADERS: dict[str, Callable[[], DataLoader[int]]] = {
    "UCB": lambda: make(UCB(every=1)),
    "weights": lambda: make(EpsilonGreedy(every=1, rescale=True)),
    "history": lambda: make(IES(threshold=1e-3)),
    "steps": lambda: make(InfoBatch(anneal=None), steps_per_epoch=9),
    "drop_last": lambda: make(UCB(keep=0.55, every=1), drop_last=True),
}


def assert_refused(loader: Any, state: Any, what: Any) -> None:
    before = plain(loader.state_dict())
    try:
        loader.load_state_dict(state)
    except ValueError as error:
        message = str(error)
    else:
        raise AssertionError(f"{what} was accepted")
    assert message, what
    assert plain(loader.state_dict()) == before, what


def others_of(name: str, value: Any, damages: Any) -> list[Any]:
    """Return the damaged values that differ from the original."""
    found = []
    for damage in damages[name]:
        if value is None:  # only damages that apply to any value
            with contextlib.suppress(AttributeError, TypeError):
                found.append(damage(value))
        else:
            found.append(damage(value))
    return [other for other in found if type(other) is not type(value) or is_other(other, value)]


def is_other(other: Any, value: Any) -> bool:
    return isinstance(value, torch.Tensor) or other != value


@pytest.mark.parametrize("kind", LOADERS)
def test_every_part_of_a_state(kind: str) -> None:
    """A new loader refuses each damaged part, and so does the loader that made the state."""
    loader = begun(LOADERS[kind]())
    state = state_of(loader)
    assert set(state) == set(DAMAGES)
    fresh, num_tried = LOADERS[kind](), 0
    for name in state:
        for value in others_of(name, state[name], DAMAGES):
            for target in (fresh, loader):
                assert_refused(target, state | {name: value}, (name, value))
            num_tried += 1
    assert num_tried > 200
    fresh.load_state_dict(state)


@pytest.mark.parametrize("kind", LOADERS)
def test_every_part_of_a_table(kind: str) -> None:
    loader = begun(LOADERS[kind]())
    state = state_of(loader)
    assert set(state["table"]) == set(TABLE_DAMAGES)
    fresh, alone = LOADERS[kind](), ScoreTable(N, "cpu", history=2)
    for name, value in state["table"].items():
        for other in others_of(name, value, TABLE_DAMAGES):
            damaged = state["table"] | {name: other}
            assert_refused(alone, damaged, (name, other))
            for target in (fresh, loader):
                assert_refused(target, state | {"table": damaged}, (name, other))
    fresh.load_state_dict(state)
    alone.load_state_dict(state["table"])


def test_no_part_may_be_missing() -> None:
    loader = begun(make(UCB(every=1)))
    state = state_of(loader)
    for name in set(state) - {"start", "batch", "epoch_seconds"}:
        assert_refused(loader, {k: v for k, v in state.items() if k != name}, name)
    for name in state["table"]:
        table = {k: v for k, v in state["table"].items() if k != name}
        assert_refused(loader, state | {"table": table}, name)


@pytest.mark.parametrize("state", [None, 1, "text", [], [("epoch", 1)], {}, {1: 2, "a": 3}, {None}])
def test_objects_that_are_not_states(state: Any) -> None:
    for target in (
        begun(make(UCB(every=1))),
        make(Full()),
        DataLoader(Numbers(N)),
        ScoreTable(N, "cpu"),
        ImportanceGate(4, 2),
        SelectiveBackprop(),
    ):
        assert_refused(target, state, target)


def test_a_state_without_a_selection_has_no_indices() -> None:
    loader = make(UCB(every=1))
    state = state_of(loader)
    assert state["checkpoint"] is state["indices"] is state["weights"] is None
    for name, value in (("indices", torch.arange(3)), ("weights", torch.ones(3)), ("indices", [])):
        assert_refused(loader, state | {name: value}, name)
    assert_refused(loader, state | {"checkpoint": 0}, "checkpoint")
    pruned = begun(make(UCB(every=1)))
    assert_refused(pruned, state_of(pruned) | {"checkpoint": None}, "checkpoint")


def test_a_state_without_a_policy() -> None:
    for table in (None, ScoreTable(N, "cpu")):
        loader = DataLoader(Numbers(N), 4, table=table)
        state = state_of(loader)
        for name in state:
            for value in others_of(name, state[name], DAMAGES):
                if not (name == "epoch" and type(value) is int and value == 2**32):
                    assert_refused(loader, state | {name: value}, (name, value))
        if table is None:
            assert_refused(loader, state | {"table": ScoreTable(N, "cpu").state_dict()}, "table")
        loader.load_state_dict(state | {"epoch": 3})
        assert loader.epoch == 3


def test_the_end_of_an_epoch() -> None:
    """The last batch is smaller than the others, or dropped."""
    for drop_last, stop, others in ((False, 33, (29, 30, 31, 34)), (True, 32, (29, 33, 36))):
        loader = make(UCB(keep=0.55, every=1), drop_last=drop_last)
        for index in loader:
            loader.update(loss_of(index))
        iterator = iter(loader)
        for _ in range(len(loader)):
            loader.update(loss_of(next(iterator)))
        state = state_of(loader)
        assert state["position"] == stop
        for position in others:
            batch = -(-position // 4)
            assert_refused(loader, state | {"position": position, "batch": batch}, position)
        fresh = make(UCB(keep=0.55, every=1), drop_last=drop_last)
        fresh.load_state_dict(state)
        assert list(fresh) == []


@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 20}], ids=["free", "fixed"])
def test_an_epoch_that_ended_in_the_middle(options: dict[str, Any]) -> None:
    """An exhausted epoch ends after its last batch or, in torch's own loader, where it began."""
    loader = begun(make(UCB(keep=0.5, every=1), **options))
    state = state_of(loader) | {"is_exhausted": True}
    with pytest.raises(ValueError, match=r"position of the state must be .* if is_exhausted"):
        loader.load_state_dict(state)
    stop = 80 if options else 30
    for start, position in ((0, 0), (12, 12), (0, stop), (12, stop)):
        other = make(UCB(keep=0.5, every=1), **options)
        batch = -(-position // 4)
        other.load_state_dict(state | {"start": start, "position": position, "batch": batch})
        assert other.epoch == 3
    del state[
        "start"
    ]  # as in states of older versions, whose epoch may have begun at this position
    loader.load_state_dict(state)


def test_a_run_is_resumed_on_other_numbers_of_processes_again_and_again() -> None:
    """Steps are counted from the position of the resume, which is no multiple of the new step."""

    def made(num_replicas: int, **options: Any) -> DataLoader[int]:
        return DataLoader(
            Numbers(400), 4, policy=Full(), seed=1, num_replicas=num_replicas, rank=0, **options
        )

    for options in ({}, {"drop_last": True}, {"steps_per_epoch": 30}):
        loader, position = made(3, **options), 0
        for num_replicas in (2, 1, 3, 2, 2):
            iterator = iter(loader)
            for _ in range(3):
                next(iterator)
                position += loader.samples_per_step
            state = state_of(loader)
            assert state["position"] == position
            loader = made(num_replicas, **options)
            loader.load_state_dict(state)
            state = state_of(loader)
            assert state["position"] == state["start"] == position
            loader = made(num_replicas, **options)
            loader.load_state_dict(state)


@pytest.mark.parametrize("arrays", [False, True])
def test_fewer_processes_resume_beyond_the_end_of_their_epoch(arrays: bool) -> None:
    def made(num_replicas: int) -> DataLoader[Any]:
        dataset = TensorDataset(torch.arange(400)) if arrays else Numbers(400)
        return DataLoader(
            dataset,
            4,
            policy=Full(),
            num_replicas=num_replicas,
            rank=0,
            steps_per_epoch=5,
            epochs=2,
        )

    loader, fewer = made(3), made(1)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    fewer.load_state_dict(state_of(loader))
    assert fewer.num_left == 0
    assert fewer.progress == 0.5
    iterator = iter(fewer)
    assert len(iterator) == (0 if arrays else 5)
    assert list(iterator) == []
    assert (fewer.epoch, fewer.num_left, len(list(fewer))) == (1, 5, 5)


def test_batches_skipped_while_an_iterator_is_in_use() -> None:
    loader, other = make(Full()), make(Full())
    iterator = iter(loader)
    next(iterator)
    loader.skip(3)
    next(iterator)
    state = state_of(loader)
    assert (state["start"], state["position"]) == (8, 8)
    other.load_state_dict(state)
    assert other.num_left == 13


def test_an_older_state_may_lack_its_start() -> None:
    loader, other = begun(make(UCB(every=1))), make(UCB(every=1))
    state = state_of(loader)
    del state["start"], state["batch"]
    other.load_state_dict(state)
    assert [index.tolist() for index in other] != []


def test_other_mappings_and_integers_are_accepted() -> None:
    class Read(Mapping[str, Any]):
        def __init__(self, values: dict[str, Any]) -> None:
            self.values_of = values

        def __getitem__(self, key: str) -> Any:
            return self.values_of[key]

        def __iter__(self) -> Any:
            return iter(self.values_of)

        def __len__(self) -> int:
            return len(self.values_of)

    loader, other = begun(make(UCB(every=1))), make(UCB(every=1))
    state = state_of(loader)
    numpy = {k: np.int64(v) for k, v in state.items() if type(v) is int}
    other.load_state_dict(Read(state | numpy | {"table": Read(state["table"])}))
    found = other.state_dict() | {"start": state["start"]}
    assert plain(found) == plain(state)
    assert all(type(found[name]) is int for name in numpy)


# --- a state is a copy ---------------------------------------------------------------------------


def tensors_of(state: dict[str, Any]) -> list[torch.Tensor]:
    parts = [*state.values(), *state["table"].values()]
    return [part for part in parts if isinstance(part, torch.Tensor)]


def spoil(state: dict[str, Any]) -> None:
    for tensor in tensors_of(state):
        tensor.fill_(7)


@pytest.mark.parametrize("kind", LOADERS)
def test_writing_to_a_state_leaves_the_loader_alone(kind: str) -> None:
    loader = begun(LOADERS[kind]())
    twin = copy.deepcopy(loader)
    state = loader.state_dict()
    assert len(tensors_of(state)) >= 5
    before = plain(state)
    spoil(state)
    assert plain(loader.state_dict()) == before
    wanted, found = (
        [(index.tolist(), float(each.update(loss_of(index)))) for _ in range(3) for index in each]
        for each in (twin, loader)
    )
    assert found == wanted


@pytest.mark.parametrize("kind", LOADERS)
def test_writing_to_a_state_that_was_loaded_leaves_the_loader_alone(kind: str) -> None:
    state = begun(LOADERS[kind]()).state_dict()
    loaders = LOADERS[kind](), LOADERS[kind]()
    states = copy.deepcopy(state), state
    for loader, each in zip(loaders, states, strict=True):
        loader.load_state_dict(each)
    spoil(state)
    wanted, found = (
        [(index.tolist(), float(each.update(loss_of(index)))) for _ in range(3) for index in each]
        for each in loaders
    )
    assert found == wanted
    # Training does not write to the loaded state, either.
    assert all(bool((tensor == 7).all()) for tensor in tensors_of(state))


def test_a_state_may_hold_tensors_that_require_gradients() -> None:
    loader, other = begun(make(EpsilonGreedy(every=1, rescale=True))), None
    state = state_of(loader)
    other = make(EpsilonGreedy(every=1, rescale=True))
    table = state["table"] | {"scores": state["table"]["scores"].requires_grad_()}
    other.load_state_dict(state | {"table": table, "weights": state["weights"].requires_grad_()})
    assert not other.table.scores.requires_grad
    assert plain(other.state_dict()["table"]) == plain(state["table"])


# --- selection within a batch --------------------------------------------------------------------


def test_states_of_selection_within_a_batch() -> None:
    gate, backprop = ImportanceGate(8, 2), SelectiveBackprop(history=10)
    gate.update(torch.rand(8)), backprop(torch.rand(6))
    damages: dict[str, Any] = {
        **{name: ANYTHING + TENSORS + [to(True)] for name in ("b", "k", "alpha")},
        **{name: ANYTHING + TENSORS + [to(True)] for name in ("beta", "history", "seed")},
        "tau": NO_SECONDS,
        "step": NO_COUNTS,
        "losses": [*NO_TENSORS[:-4], *NO_TENSORS[-2:], to(None), lambda x: torch.cat([x, x])],
    }
    for target in (gate, backprop):
        state = state_of(target)
        for name in state:
            for value in others_of(name, state[name], damages):
                assert_refused(target, state | {name: value}, (name, value))
            assert_refused(target, {k: v for k, v in state.items() if k != name}, name)
        target.load_state_dict(state)
        spoiled = target.state_dict()
        if "losses" in spoiled:
            spoiled["losses"].fill_(7)
            assert plain(target.state_dict()) == plain(state)
