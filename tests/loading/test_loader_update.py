"""Losses reach their samples, update returns the loss to minimize, and stats describes a loader."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from ledger import (
    Lowest,
    Numbers,
    assert_scores_are_losses,
    feed,
    loss_of,
    lowest,
    train,
    updated,
)

import dynloader
from dynloader import DataLoader, Full, InfoBatch, RandomDynamic

N = 100


# --- update --------------------------------------------------------------------------------------


def test_update_returns_the_mean_and_is_differentiable() -> None:
    loader = lowest()
    index = next(iter(loader))
    losses = loss_of(index).requires_grad_()
    loss = loader.update(losses)
    loss.backward()
    assert torch.equal(loss, losses.mean())
    assert torch.equal(losses.grad, torch.full((8,), 1 / 8))
    assert loader.table.scores.requires_grad is False


def test_scores_are_recorded_in_place_of_the_losses() -> None:
    loader = lowest()
    index = next(iter(loader))
    losses = torch.full((8,), 7.0, requires_grad=True)
    assert loader.update(losses, scores=loss_of(index).double()).item() == 7.0
    assert torch.equal(loader.table.last_loss[index], loss_of(index))
    next(iter(loader))
    with pytest.raises(ValueError, match=r"scores must have the shape of losses, \[8\], got \[7\]"):
        loader.update(losses, scores=torch.ones(7))
    with pytest.raises(TypeError, match=r"scores must be floating point, got torch\.int64"):
        loader.update(losses, scores=torch.ones(8, dtype=torch.int64))
    assert loader.table.num_updates == 1


def test_samples_that_are_not_fed_weigh_1() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=InfoBatch(anneal=None), return_index=True)
    for index, _ in loader:
        loader.update(loss_of(index), index)
    iterator = iter(loader)
    next(iterator)
    rest = sorted(set(range(N)) - set(loader.sampler.epochs.current.plan.kept.indices.tolist()))
    assert len(rest) > 20
    losses = torch.rand(len(rest), generator=torch.Generator().manual_seed(0))
    assert torch.equal(loader.update(losses, torch.tensor(rest)), losses.mean())


def test_update_weighs_as_the_policy_says() -> None:
    loader = DataLoader(Numbers(N), batch_size=8, policy=InfoBatch(anneal=None), return_index=True)
    for index, _ in loader:
        loader.update(loss_of(index))
    mean = loss_of(torch.arange(N)).double().mean()
    num_below = int((loss_of(torch.arange(N)).double() < mean).sum())
    weight = num_below / (num_below - num_below // 2)
    for index, _ in loader:
        losses = loss_of(index)
        weights = torch.where(losses.double() < mean, weight, 1.0).float()
        expected = (losses * weights).mean()
        torch.testing.assert_close(loader.update(losses, index), expected)
        torch.testing.assert_close(
            loader.update(losses.bfloat16(), index), (losses.bfloat16() * weights.bfloat16()).mean()
        )


def test_scores_reach_their_samples() -> None:
    loader = lowest()
    seen: list[int] = []
    for number, index in enumerate(loader, start=1):
        loader.update(loss_of(index))
        seen += index.tolist()
        if number == 5:
            break
    assert_scores_are_losses(loader.table, seen)


def test_update_needs_a_batch() -> None:
    loader = lowest()
    with pytest.raises(RuntimeError, match=r"got none.*return_index=True"):
        loader.update(torch.ones(8))
    index = next(iter(loader))
    loader.update(loss_of(index))
    with pytest.raises(RuntimeError, match=r"got none.*update\(losses, index\)"):
        loader.update(loss_of(index))


def test_a_batch_fetched_ahead_makes_the_pairing_an_error() -> None:
    loader = lowest(return_index=True)
    iterator = iter(loader)
    first, _ = next(iterator)
    second, _ = next(iterator)
    with pytest.raises(RuntimeError, match=r"exactly one batch.*got 2.*return_index=True"):
        loader.update(loss_of(first))
    assert loader.table.num_updates == 0
    loader.update(loss_of(first), first)
    loader.update(loss_of(second), second)
    assert_scores_are_losses(loader.table, [*first.tolist(), *second.tolist()])


def test_a_batch_ahead_stays_ahead_when_losses_come_by_index() -> None:
    loader = lowest(return_index=True)
    iterator = iter(loader)
    first, _ = next(iterator)
    next(iterator)
    loader.update(loss_of(first), first)
    next(iterator)
    with pytest.raises(RuntimeError, match="got 2"):
        loader.update(torch.ones(8))


def test_a_peek_does_not_spoil_the_pairing() -> None:
    loader = lowest()
    held = iter(loader)
    next(held)
    assert len(train(loader)) == N


def test_two_iterators_at_once_make_the_pairing_an_error() -> None:
    loader = lowest()
    for first, second in zip(loader, loader, strict=True):
        assert torch.equal(first, second)
        with pytest.raises(RuntimeError, match="return_index=True"):
            loader.update(loss_of(second))
        break
    assert loader.table.num_updates == 0


def test_update_takes_an_index_of_any_kind() -> None:
    loader = lowest()
    for index in (
        [3, 4],
        np.array([5, 6], dtype=np.int32),
        torch.tensor([7, 8], dtype=torch.uint8),
    ):
        loader.update(torch.tensor([1.0, 2.0]), index)
    loader.update(torch.tensor([9.0]), torch.tensor(9))
    assert loader.table.scores[3:10].tolist() == [1, 2, 1, 2, 1, 2, 9]


# --- statistics ----------------------------------------------------------------------------------


def test_stats() -> None:
    loader = lowest()
    train(loader)
    loader.update(torch.tensor([float("nan"), 2.0**31]), [0, 1])
    stats = loader.stats()
    assert all(type(value) is float for value in stats.values())
    expected = {"epoch": 1, "num_samples": N, "num_selected": 50, "kept_fraction": 0.5}
    expected |= {"num_nonfinite": 1, "num_saturated": 1, "num_unseen": 0, "num_selections": 1}
    for name, value in expected.items():
        assert stats[f"dynloader/{name}"] == value
    finite = loss_of(torch.arange(N)).double()
    finite[1] = 2.0**30
    assert stats["dynloader/mean_score"] == finite[1:].mean()
    assert stats["dynloader/select_seconds"] > 0
    assert stats["dynloader/update_seconds"] > 0
    assert len(stats) == 12


def test_samples_never_seen_are_not_called_nonfinite() -> None:
    stats = lowest().stats()
    assert stats["dynloader/num_unseen"] == N
    assert stats["dynloader/num_nonfinite"] == 0


def test_stats_without_a_policy() -> None:
    stats = DataLoader(Numbers(N)).stats()
    assert stats["dynloader/kept_fraction"] == 1
    assert "dynloader/mean_score" not in stats


@pytest.mark.parametrize("drop_last", [False, True])
def test_total_steps_is_the_number_of_batches_fed(drop_last: bool) -> None:
    policy = Lowest(keep=lambda epoch: 0.9 - 0.1 * epoch, every=2, warmup=2, anneal=0.75, epochs=8)
    loader = DataLoader(Numbers(N), batch_size=8, drop_last=drop_last, policy=policy)
    expected = loader.total_steps(8)
    assert loader.epoch == 0
    assert sum(len(list(updated(loader))) for _ in range(8)) == expected
    plain = DataLoader(Numbers(N), batch_size=8, drop_last=drop_last)
    assert plain.total_steps(3) == 3 * len(plain)


def test_repr_is_one_line() -> None:
    text = repr(lowest())
    assert "\n" not in text
    for part in ("<Numbers of 100>", "batch_size=8", "Lowest(keep=0.5", "epoch=0", "device="):
        assert part in text


# --- attributes, devices and random generators ---------------------------------------------------


def test_arguments_are_public_attributes() -> None:
    policy, table = Full(), dynloader.ScoreTable(N, device="cpu")
    loader = DataLoader(Numbers(N), policy=policy, table=table, seed=3, return_index=True)
    assert (loader.policy, loader.table, loader.seed) == (policy, table, 3)
    assert loader.return_index is True
    plain = DataLoader(Numbers(N))
    assert (plain.policy, plain.table, plain.seed, plain.return_index) == (None, None, None, False)


def test_the_table_is_on_the_gpu_if_present_unless_given() -> None:
    has_gpu = dynloader.build_info()["cuda"] is not None and torch.cuda.is_available()
    assert DataLoader(Numbers(N), policy=Full()).table.device.type == ("cuda" if has_gpu else "cpu")
    table = dynloader.ScoreTable(N, device="cpu")
    assert DataLoader(Numbers(N), policy=Full(), table=table).table is table


def test_no_attribute_can_collide_with_torchs_mangled_ones() -> None:
    torchs = set(vars(torch.utils.data.DataLoader(Numbers(N)))) | {"_DataLoader__initialized"}
    ours = {name for name in vars(lowest()) if name.startswith("_DataLoader__")}
    assert ours <= torchs


def test_a_policy_moves_no_global_generator_beyond_torchs_loader() -> None:
    def state_after(make: type, **options: object) -> tuple[object, ...]:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        loader = make(Numbers(N), batch_size=8, **options)
        for _ in range(3):
            for _ in loader:
                pass
        return (
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            random.getstate(),
        )

    expected = state_after(torch.utils.data.DataLoader)
    for policy in (RandomDynamic(keep=0.5, every=1), Lowest(keep=0.5), InfoBatch(anneal=None)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert state_after(DataLoader, policy=policy) == expected


def test_policies_do_not_depend_on_global_generators() -> None:
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        orders.append(feed(DataLoader(Numbers(N), policy=RandomDynamic(keep=0.5))))
    assert orders[0] == orders[1]
