"""What is selected, weighed and scored does not depend on ``torch.set_default_dtype``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import plain
from ledger import Numbers
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dynloader import (
    IES,
    UCB,
    ArrayDataset,
    DataLoader,
    EpsilonGreedy,
    EvolvedSampling,
    Full,
    ImportanceGate,
    InfoBatch,
    Kakurenbo,
    LossMixer,
    OrderDP,
    PassRate,
    Policy,
    Prioritized,
    RandomDynamic,
    RePB,
    Replay,
    ScoreTable,
    SelectiveBackprop,
    SeTa,
    Sources,
    Static,
    StaticRandom,
    Weighted,
    scores,
    select_batch,
    transforms,
)

N = 60
OTHERS = [torch.float64, torch.bfloat16, torch.float16]
# Half precision rounds these.
STATIC = [1 + i * 37 % N / 4096 for i in range(N)]
CONSTRAINTS: list[dict[str, Any]] = [
    {},
    {"rescale": True},
    {"explore": 0.2},
    {"min_per_class": 5, "labels": [i % 3 for i in range(N)]},
    {"explore": 0.2, "min_per_class": 5, "labels": [i % 3 for i in range(N)]},
]
RULES: dict[str, Callable[..., Policy]] = {
    "full": lambda **constraints: Full(**constraints),
    "static random": lambda **constraints: StaticRandom(**constraints),
    "static": lambda **constraints: Static(scores=STATIC, **constraints),
    "replay": lambda **constraints: Replay(scores=[STATIC, STATIC[::-1]], **constraints),
    "random": lambda **constraints: RandomDynamic(every=1, **constraints),
    "chunks": lambda **constraints: RandomDynamic(every=1, chunks=True, **constraints),
    "epsilon": lambda **constraints: EpsilonGreedy(every=1, **constraints),
    "ucb": lambda **constraints: UCB(every=1, **constraints),
    "ucb by visits": lambda **constraints: UCB(every=1, bonus="visits", **constraints),
    "info batch": lambda **constraints: InfoBatch(
        **{"rescale": False, "anneal": None} | constraints
    ),
    "info batch, a count": lambda **constraints: InfoBatch(
        **{"keep": 0.6, "rescale": False, "anneal": None} | constraints
    ),
    "weighted": lambda **constraints: Weighted(**{"rescale": False} | constraints),
    "weighted, scaled": lambda **constraints: Weighted(
        **{"exponent": 40, "offset": 1e-3, "rescale": False} | constraints
    ),
    "prioritized": lambda **constraints: Prioritized(**{"rescale": False} | constraints),
    "kakurenbo": lambda **constraints: Kakurenbo(confidence=0.5, **constraints),
    "ies": lambda **constraints: IES(keep=0.3, threshold=0.5, window=1, **constraints),
    "seta": lambda **constraints: SeTa(**constraints),
    "order": lambda **constraints: OrderDP(**constraints),
    "evolved": lambda **constraints: EvolvedSampling(**constraints),
    "repb": lambda **constraints: RePB(**{"rescale": False} | constraints),
    "prompts": lambda **constraints: PassRate(keep=0.5, retry_easy=0.3, **constraints),
    "prompts in a band": lambda **constraints: PassRate(keep=0.5, rule="band", **constraints),
    "prompts, gaussian": lambda **constraints: PassRate(
        keep=0.5, rule="gaussian", target=0.1, retire_above=0.9, evidence=2, **constraints
    ),
    "sources": lambda **constraints: Sources(
        policy=UCB(every=1), groups=[i % 2 for i in range(N)], weights=LossMixer(), **constraints
    ),
}


def allowed(make: Callable[..., Policy], constraints: dict[str, Any]) -> bool:
    """Whether the rule takes these options."""
    try:
        make(**constraints)
    except ValueError:
        return False
    return True


CASES = [
    pytest.param(make, constraints, id=f"{name}-{'-'.join(constraints) or 'plain'}")
    for (name, make), constraints in itertools.product(RULES.items(), CONSTRAINTS)
    if allowed(make, constraints)
]


@pytest.fixture(params=OTHERS, ids=str)
def other(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Another default dtype, for the test to set; float32 is restored."""
    yield request.param
    torch.set_default_dtype(torch.float32)


def on_both(other: torch.dtype, made: Callable[[], Any]) -> tuple[Any, Any]:
    """What is made under float32, and under the other default."""
    found = []
    for dtype in (torch.float32, other):
        torch.set_default_dtype(dtype)
        found.append(made())
    torch.set_default_dtype(torch.float32)
    return found[0], found[1]


def losses_of(index: Tensor, epoch: int) -> Tensor:
    """Float32, and in no half precision."""
    return ((index * 37 + epoch * 11) % 1009).to(torch.float32) / 256


def trace(policy: Policy) -> list[Any]:
    """Batches, loss weights and losses of some epochs, and what the table holds then."""
    loader = DataLoader(Numbers(N), 8, policy=policy, table=ScoreTable(N, "cpu"), seed=3)
    found: list[Any] = []
    for epoch in range(5):
        for index in loader:
            losses = losses_of(index, epoch)
            losses = losses if policy.passes is None else losses % 1  # rewards
            found += [index, loader.update(losses)]
        kept = loader.pruning_sampler.epochs.plan.kept
        found.append(None if kept is None else kept.weights)
    state = loader.state_dict()
    return [*found, loader.stats().keys(), state["indices"], state["weights"], state["table"]]


@pytest.mark.parametrize(("make", "constraints"), CASES)
def test_policies(make: Callable[..., Policy], constraints: Any, other: torch.dtype) -> None:
    wanted, found = on_both(other, lambda: plain(trace(make(**constraints))))
    assert found == wanted


def test_every_rule_and_constraint_is_tried() -> None:
    tried = {type(case.values[0](**case.values[1])) for case in CASES}
    ours = {rule for rule in Policy.__subclasses__() if rule.__module__.startswith("dynloader.")}
    assert tried == ours
    assert all(any(case.values[1] == constraints for case in CASES) for constraints in CONSTRAINTS)


def test_static_scores_of_python_numbers(other: torch.dtype) -> None:
    for given in (STATIC, tuple(STATIC), [torch.tensor(x, dtype=torch.float64) for x in STATIC]):
        wanted, found = on_both(other, lambda given=given: plain(Static(scores=given).scores))
        assert found == wanted
        assert wanted == plain(torch.tensor(STATIC, dtype=torch.float32))


# Half precision rounds these, too.
LOGITS = torch.tensor([[0.1003, 0.7], [1.3007, -0.3], [0.0, 0.5]])
LABELS = torch.tensor([0, 1, 1])
HISTORY = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
CORRECT = HISTORY > 0.5
CLASSES = torch.rand(6, 9, 3, generator=torch.Generator().manual_seed(1)).softmax(2)


@pytest.mark.parametrize(
    "score",
    [
        *(lambda f=f: f(LOGITS, LABELS) for f in scores.SCORES.values()),
        lambda: scores.grand_last_layer(LOGITS, LABELS, LOGITS),
        lambda: scores.forgetting_events(CORRECT),
        lambda: scores.dynamic_uncertainty(HISTORY, 3),
        lambda: scores.dual(HISTORY, 3),
        lambda: scores.tdds(CLASSES, 2, 0.7),
        lambda: scores.grand(nn.Linear(2, 2), torch.empty(0, 2), torch.empty(0).long()),
    ],
)
def test_scores(score: Callable[[], Tensor], other: torch.dtype) -> None:
    wanted, found = on_both(other, lambda: plain(score()))
    assert wanted[0] == "torch.float32"
    assert found == wanted


def model_and_data() -> tuple[nn.Module, TensorDataset]:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(4, 3, dtype=torch.float32)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float32))
    inputs = torch.rand(N, 4, generator=generator, dtype=torch.float32)
    return layer, TensorDataset(inputs, torch.arange(N) % 3)


@pytest.mark.parametrize("score", [*scores.SCORES, "grand", "grand_last_layer"])
def test_a_scoring_pass(score: str, other: torch.dtype) -> None:
    def made() -> Any:
        model, data = model_and_data()
        found = scores.scoring_pass(model, DataLoader(data, 7), score)
        return plain([found.scores, found.num_forward])

    wanted, found = on_both(other, made)
    assert wanted[0][0] == "torch.float32"
    assert found == wanted


def test_rescoring(other: torch.dtype) -> None:
    def made() -> Any:
        model, data = model_and_data()
        loader = DataLoader(data, 7, policy=RandomDynamic(keep=0.5), table=ScoreTable(N, "cpu"))
        found = scores.rescore(model, loader)
        none = scores.rescore(model, DataLoader(data, 7, policy=Full()))
        return plain([found.indices, found.scores, none.scores, loader.table.state_dict()])

    wanted, found = on_both(other, made)
    assert [wanted[1][0], wanted[2][0]] == ["torch.float32"] * 2
    assert found == wanted


def test_choosing_within_a_batch(other: torch.dtype) -> None:
    def made() -> Any:
        losses = losses_of(torch.arange(N), 0)
        backprop, gate = SelectiveBackprop(), ImportanceGate(N, 7)
        found = [backprop(losses[part]) for part in (slice(0, 30), slice(30, N))]
        chosen = [
            select_batch(losses, 7, rule=rule) for rule in ("top", "importance", "proportional")
        ]
        return plain([found, backprop.state_dict(), gate.update(losses), gate.tau, chosen])

    wanted, found = on_both(other, made)
    assert wanted[1]["losses"][0] == "torch.float32"
    assert found == wanted


def test_transforms(other: torch.dtype) -> None:
    images = torch.arange(6 * 3 * 4 * 4, dtype=torch.uint8).view(6, 3, 4, 4)
    listed = [
        transforms.RandomCrop(3, padding=1, fill=7),
        transforms.RandomHorizontalFlip(0.3),
        transforms.Cutout(1, fill=7),
        transforms.Normalize([0.1, 0.2, 0.3], 0.7),
    ]

    def made() -> Any:
        found: list[Any] = []
        for data in (images, images.to(torch.float32), images.to(torch.float64)):
            loader = DataLoader(ArrayDataset(data), 4, policy=Full(), transforms=listed)
            found += list(loader)
        return plain(found)

    wanted, found = on_both(other, made)
    assert wanted[0][0] == "torch.float32"
    assert found == wanted


def test_what_is_logged_of_classes(other: torch.dtype) -> None:
    def made() -> Any:
        table = ScoreTable(N, "cpu")
        loader = DataLoader(Numbers(N), 8, policy=UCB(keep=0.4, every=1), table=table)
        logged: list[Any] = []
        labels = torch.arange(N) % 7
        loader.log_to(lambda figures, epoch: logged.append(figures), labels=labels)
        for epoch in range(3):
            for index in loader:
                loader.update(losses_of(index, epoch))
        return [figures["kept_of_class"] for figures in logged]

    wanted, found = on_both(other, made)
    assert found == wanted


def test_saved_scores(other: torch.dtype, tmp_path: Path) -> None:
    def made() -> Any:
        scores.save(tmp_path / "scores.npz", torch.tensor(STATIC, dtype=torch.float64))
        return plain(scores.load(tmp_path / "scores.npz"))

    wanted, found = on_both(other, made)
    assert found == wanted
