"""Samples left out of an epoch get new scores, and the epoch stays the same."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset, TensorDataset

from dynloader import (
    IES,
    UCB,
    ArrayDataset,
    DataLoader,
    Full,
    Kakurenbo,
    Policy,
    RandomDynamic,
    ScoreTable,
    scores,
    transforms,
)
from dynloader.loading._frameworks import FixedLength

N = 50


class Pairs(Dataset[Any]):
    """A dataset that must be read sample by sample."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


def made(seed: int = 0) -> tuple[nn.Module, TensorDataset]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    return model, TensorDataset(torch.randn(N, 4), torch.randint(3, (N,)))


def losses_of(model: nn.Module, data: TensorDataset) -> Tensor:
    """Return the current losses of all samples."""
    modes = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        found = scores.cross_entropy(model(data.tensors[0]), data.tensors[1])
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return found


def trained(loader: DataLoader[Any]) -> set[int]:
    """Train one epoch with the indices as losses, and return the samples that were fed."""
    fed: set[int] = set()
    for *_, index in loader:
        loader.update(index.float())
        fed |= set(index.tolist())
    return fed


@pytest.mark.parametrize("kind", [Pairs, lambda data: data])
@pytest.mark.parametrize("batch_size", [8, None])
def test_what_is_left_out_is_scored(kind: Any, batch_size: int | None) -> None:
    model, data = made()
    policy = RandomDynamic(keep=0.3, every=1)
    loader = DataLoader(kind(data), batch_size, policy=policy, table=ScoreTable(N, "cpu"))
    model.train()
    found = scores.rescore(model, loader)
    assert model[1].training
    assert found.seconds > 0
    assert len(found.indices) == 35
    assert found.indices.tolist() == sorted(set(found.indices.tolist()))
    wanted = losses_of(model, data)
    assert torch.allclose(found.scores, wanted[found.indices])
    is_new = torch.zeros(N, dtype=torch.bool)
    is_new[found.indices] = True
    assert loader.table is not None
    assert torch.equal(loader.table.last_loss[is_new], found.scores)
    assert loader.table.visits.tolist() == is_new.int().tolist()


@pytest.mark.parametrize("kind", [Pairs, lambda data: data])
def test_the_epoch_stays_as_it_is(kind: Any) -> None:
    model, data = made()
    options = {"policy": RandomDynamic(keep=0.4, every=1), "return_index": True, "seed": 3}
    plain: DataLoader[Any] = DataLoader(kind(data), 8, **options)
    loader: DataLoader[Any] = DataLoader(kind(data), 8, **options)
    for epoch in range(4):
        scores.rescore(model, loader)
        # Repeat after a peek at the first batch, and in the middle of the epoch.
        next(iter(loader))
        again = scores.rescore(model, loader)
        assert loader.epoch == epoch
        batches = []
        for number, batch in enumerate(loader):
            loader.update(batch[-1].float())
            batches.append(batch[-1].tolist())
            if number == 1:
                assert scores.rescore(model, loader).indices.tolist() == again.indices.tolist()
        assert batches == [batch[-1].tolist() for batch in plain]
        assert set(again.indices.tolist()) == set(range(N)) - {i for b in batches for i in b}
        assert loader.epoch == epoch + 1


def test_after_an_epoch_that_was_only_looked_at() -> None:
    model, data = made()
    policy = RandomDynamic(keep=0.4, every=1)
    loader: DataLoader[Any] = DataLoader(data, 8, policy=policy)
    for _ in loader:
        pass
    scores.rescore(model, loader)
    for batch in loader:
        loader.update(torch.ones(len(batch[0])))


def test_an_epoch_resumed_in_its_midst_was_scored_before() -> None:
    model, data = made()
    policy = RandomDynamic(keep=0.4, every=1)
    loader: DataLoader[Any] = DataLoader(data, 8, policy=policy)
    scores.rescore(model, loader)
    iterator = iter(loader)
    loader.update(torch.ones(len(next(iterator)[0])))
    resumed: DataLoader[Any] = DataLoader(data, 8, policy=policy)
    resumed.load_state_dict(loader.state_dict())
    assert len(scores.rescore(model, resumed).indices) == 0
    assert resumed.table is not None
    assert loader.table is not None
    assert torch.equal(resumed.table.visits, loader.table.visits)


def test_the_length_of_its_own_loader_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = made()
    loader = DataLoader(data, batch_size=8, policy=UCB(keep=0.5))
    for x, y in loader:
        loader.update(nn.functional.cross_entropy(model(x), y, reduction="none"))
    expected = FixedLength("A trainer", 1000, "a remedy")
    monkeypatch.setattr("dynloader.loading._frameworks.fixed_length", lambda length: expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(scores.rescore(model, loader).indices) > 0


def test_nothing_is_left_out() -> None:
    model, data = made()
    for policy in (Full(), UCB(keep=0.5)):
        loader: DataLoader[Any] = DataLoader(data, 8, policy=policy)
        found = scores.rescore(model, loader)
        assert found.indices.tolist() == found.scores.tolist() == []
        assert loader.table is not None
        assert loader.table.num_updates == 0
        assert loader.epoch == 0


def test_hidden_samples_return_when_they_are_hard_again() -> None:
    """As published, KAKURENBO rescores hidden samples: otherwise they would stay hidden forever."""
    model, data = made()
    model[2].weight.data.zero_()
    sure = torch.full((3,), -9.0)
    for is_rescored, wanted in ((True, N), (False, 15)):
        loader = DataLoader(data, 8, policy=Kakurenbo(keep=0.3), return_index=True, seed=1)
        for batch in loader:
            loader.update(torch.full((len(batch[0]),), 0.01))
        assert loader.num_selected == 15
        model[2].bias.data = sure  # equal logits: a loss of ln 3
        if is_rescored:
            assert scores.rescore(model, loader).scores.tolist() == pytest.approx([1.0986123] * 35)
        for batch in loader:
            loader.update(torch.full((len(batch[0]),), 1.0))
        assert loader.num_selected == wanted


def test_every_sample_has_a_loss_of_every_epoch() -> None:
    """As published, IES reads the losses of five epochs, also of samples that were left out."""
    model, data = made()
    policy = IES(threshold=0.1, keep=0.2)
    loader: DataLoader[Any] = DataLoader(data, 8, policy=policy, return_index=True)
    num_fed = []
    for _ in range(9):
        scores.rescore(model, loader)
        num_fed.append(len(trained(loader)))
    assert loader.table is not None
    assert loader.table.history is not None
    assert loader.table.visits.tolist() == [9] * N
    assert loader.table.history.isfinite().all()
    # All losses are constant, so the fewest possible samples are kept. Then the losses of the other
    # forty jump to those of the model, and the samples come back.
    assert num_fed[:6] == [N] * 5 + [10]
    assert num_fed[6] >= 35


@pytest.mark.parametrize("adds_index", [True, False])
def test_batches_equal_those_of_the_loader(adds_index: bool) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    images = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8)
    labels = torch.randint(3, (N,))
    sizes = []

    indices: list[int] = []

    def half(batch: Any) -> Any:
        sizes.append(len(batch))
        indices.extend(batch[2].tolist() if len(batch) > 2 else [])
        return [batch[0] / 2, *batch[1:]]

    loader: DataLoader[Any] = DataLoader(
        ArrayDataset(images, labels),
        8,
        policy=RandomDynamic(keep=0.4, every=1),
        seed=5,
        transforms=[
            transforms.RandomCrop(8, padding=2),
            transforms.Normalize((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        ],
        batch_transform=half,
        return_index=adds_index,
    )
    found = scores.rescore(model, loader)
    assert set(sizes) == {3 if adds_index else 2}
    assert indices == (found.indices.tolist() if adds_index else [])
    # The images equal those in an epoch of all samples.
    whole: DataLoader[Any] = DataLoader(
        ArrayDataset(images, labels),
        N,
        policy=Full(),
        seed=5,
        shuffle=False,
        transforms=loader.transforms,
        batch_transform=half,
    )
    inputs, targets = next(iter(whole))
    wanted = scores.cross_entropy(model(inputs), targets)
    assert torch.allclose(found.scores, wanted[found.indices], atol=1e-5)


def test_other_scores_and_preparation() -> None:
    model, data = made()
    loader: DataLoader[Any] = DataLoader(data, 8, policy=RandomDynamic(keep=0.4, every=1))
    model.eval()
    found = scores.rescore(model, loader, "el2n", prepare=lambda x: 0 * x)
    wanted = scores.el2n(model(0 * data.tensors[0]), data.tensors[1])
    assert torch.allclose(found.scores, wanted[found.indices])


def test_with_workers() -> None:
    model, data = made()
    loader: DataLoader[Any] = DataLoader(
        Pairs(data), 8, policy=RandomDynamic(keep=0.4, every=1), num_workers=2
    )
    found = scores.rescore(model, loader)
    assert torch.allclose(found.scores, losses_of(model, data)[found.indices])


def test_refused() -> None:
    model, data = made()
    for other, found in (
        (DataLoader(data, 8), "without one"),
        (TorchDataLoader(data), "DataLoader"),
    ):
        with pytest.raises(TypeError, match=f"DataLoader with a policy, got {found}"):
            scores.rescore(model, other)
    policy: Policy = RandomDynamic(keep=0.4, every=1)
    loader: DataLoader[Any] = DataLoader(data, 8, policy=policy)
    with pytest.raises(ValueError, match="score must be one of"):
        scores.rescore(model, loader, "losses")
    with pytest.raises(ValueError, match=r"one number per sample, \[8\], got \[8, 3\]"):
        scores.rescore(model, loader, lambda logits, labels: logits)
    assert loader.table is not None
    assert loader.table.num_updates == 0
    assert model.training
