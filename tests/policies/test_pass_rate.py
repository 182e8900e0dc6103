"""Prompts drawn by what their rollouts have earned."""

from __future__ import annotations

import io
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import reference_prompts
import torch
from ledger import Numbers
from reference import top_k
from torch import Tensor

from dynloader import (
    DataLoader,
    PassRate,
    Policy,
    PruningSampler,
    ScoreTable,
    Sources,
    Steps,
)
from dynloader.sampling._constraints import choose

N = 60


def table_of(policy: PassRate, rewards: list[list[float]], visits: int = 1) -> ScoreTable:
    """Return a table in which prompt i earned ``rewards[i]`` in each of some visits."""
    table = ScoreTable(len(rewards), "cpu")
    table.record_passes(policy.passes)
    index = [i for i, earned in enumerate(rewards) for _ in earned]
    flat = torch.tensor([reward for earned in rewards for reward in earned], dtype=torch.float32)
    for _ in range(visits):
        table.update(index, flat)
    return table


def chosen(policy: PassRate, table: ScoreTable, *, seed: int = 0, epoch: int = 1) -> list[int]:
    k = policy.num_kept(len(table), epoch)
    return choose(policy, table, k, seed=seed, epoch=epoch).indices.tolist()


def ability(index: Tensor) -> Tensor:
    """Return the chance that a rollout of each prompt passes."""
    return (index % 7) / 6


def rollouts_of(index: Tensor, step: int, g: int = 4) -> tuple[Tensor, Tensor]:
    """Return the indices of g rollouts of each prompt, and their rewards."""
    rng = np.random.default_rng(step)
    repeated = index.repeat_interleave(g)
    draws = torch.from_numpy(rng.random(len(repeated)))
    return repeated, (draws < ability(repeated)).float()


def make(policy: PassRate, n: int = N, **options: Any) -> DataLoader[int]:
    return DataLoader(Numbers(n), policy=policy, **{"batch_size": 6, "seed": 11} | options)


def train(loader: DataLoader[int], rounds: int, step: int = 0) -> list[list[int]]:
    """Train some rounds, and return the batches."""
    batches = []
    for _ in range(rounds):
        for index in loader:
            index_of_each, rewards = rollouts_of(index, step + len(batches))
            loader.update(rewards, index_of_each)
            batches.append(index.tolist())
    return batches


def test_a_band_by_hand() -> None:
    policy = PassRate(prompts=2, rule="band", low=0.3, high=0.7, decay=1.0)
    # Means of Beta(1 + s, 1 + f) after 4 rollouts: 5/6, 1/2, 4/6, 1/6, and 1/2 if never tried.
    table = table_of(policy, [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [0] * 4, []])
    found = {tuple(chosen(policy, table, epoch=e)) for e in range(40)}
    assert found == {(1, 2), (1, 4), (2, 4)}
    # Only three are inside, and 5/6 is as far from the band as 1/6.
    policy = PassRate(prompts=4, rule="band", low=0.3, high=0.7, decay=1.0)
    found = {tuple(chosen(policy, table, epoch=e)) for e in range(40)}
    assert found == {(0, 1, 2, 4), (1, 2, 3, 4)}


def test_the_posterior_concentrates_on_the_target() -> None:
    rewards = [[1.0] * i + [0.0] * (400 - i) for i in range(0, 401, 50)]
    for target, wanted in ((0.5, 4), (0.25, 2), (1.0, 8)):
        policy = PassRate(prompts=1, target=target, decay=1.0)
        table = table_of(policy, rewards)
        assert {tuple(chosen(policy, table, epoch=e)) for e in range(20)} == {(wanted,)}


def test_retirement_by_hand() -> None:
    policy = PassRate(
        prompts=4, retire_above=0.94, retire_below=0.0, evidence=8, decay=0.5, rollouts=4
    )
    table = table_of(policy, [[1.0], [0.0], [0.5], []])
    assert policy.num_retired(table) == 0  # 4 rollouts each
    table.update([0, 1], torch.tensor([1.0, 0.0]))
    assert policy.num_retired(table) == 2
    assert chosen(policy, table) == [2, 3]
    table.update([2, 3, 2, 3], torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert policy.num_retired(table) == 3  # prompt 2 has 9 of 10
    table.update([2], torch.tensor([1.0]))
    assert table.passes is not None
    assert table.passes.rates().tolist() == pytest.approx([1, 0, 8.5 / 9, 0])
    with pytest.raises(RuntimeError, match=r"all 4 prompts have retired, by retire_above=0\.94"):
        chosen(policy, table)


def test_prompts_that_are_skipped_come_last_and_retired_ones_never() -> None:
    policy = PassRate(prompts=4, retry_easy=0.0, retire_below=0.0, evidence=1, target=0.0)
    table = table_of(policy, [[1, 1], [1, 0], [0, 0], [1, 1], [1, 0], [0, 1]])
    found = {tuple(chosen(policy, table, epoch=e)) for e in range(30)}
    assert found == {(0, 1, 4, 5), (1, 3, 4, 5)}


def test_a_target_that_moves_with_the_round() -> None:
    policy = PassRate(
        prompts=6, rule="gaussian", width=0.02, target=lambda step: 0.9 - 0.2 * step, decay=1.0
    )
    rewards = [[1.0] * i + [0.0] * (200 - i) for i in range(0, 201, 4)]
    table = table_of(policy, rewards)
    assert table.passes is not None
    means = [float(table.passes.rates()[chosen(policy, table, epoch=e)].mean()) for e in range(5)]
    assert means == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1], abs=0.05)
    wrong = PassRate(prompts=6, target=lambda step: 0.9 + step)
    with pytest.raises(ValueError, match=r"target\(1\) must be in \[0, 1\], got 1.9"):
        chosen(wrong, table_of(wrong, rewards))


@pytest.mark.parametrize(
    "policy",
    [
        PassRate(prompts=9, decay=0.8),
        PassRate(keep=0.25, rule="band", low=0.4, high=0.6, retry_easy=0.5, retry_hard=0.7),
        PassRate(prompts=12, rule="gaussian", target=0.3, width=0.1, rollouts=2),
        PassRate(prompts=20, retire_above=0.95, retire_below=0.05, evidence=12, prior=(2, 3)),
    ],
    ids=lambda policy: policy.rule,
)
def test_a_training_equals_the_reference(policy: PassRate) -> None:
    loader = make(policy, seed=2**63 + 5)
    records = np.zeros((N, 4), np.int32)
    step = 0
    for epoch in range(12):
        scores = reference_prompts.pass_scores(
            records,
            rule=("posterior", "band", "gaussian").index(policy.rule),
            target=policy.target_at(epoch),
            width=policy.width,
            low=policy.low,
            high=policy.high,
            prior=policy.prior,
            retry_easy=policy.retry_easy,
            retry_hard=policy.retry_hard,
            retire_below=policy.retire_below,
            retire_above=policy.retire_above,
            evidence=policy.evidence,
            seed=2**63 + 5,
            epoch=epoch,
        )
        k = min(policy.num_kept(N, epoch), int((scores != -np.inf).sum()))
        wanted = top_k(scores, k, seed=2**63 + 5, epoch=epoch)
        assert loader.num_selected == k
        fed = []
        for index in loader:
            fed += index.tolist()
            index_of_each, rewards = rollouts_of(index, step)
            loader.update(rewards, index_of_each)
            counts = records.view(np.float32)
            for prompt in index.tolist():
                earned = rewards[index_of_each == prompt].double().numpy()
                total, count = earned.sum(), len(earned)
                g = policy.rollouts
                counts[prompt, 0] = policy.decay * np.float64(counts[prompt, 0]) + g * total
                counts[prompt, 1] = policy.decay * np.float64(counts[prompt, 1]) + g * (
                    count - total
                )
                records[prompt, 2] += g * count
                streak = records[prompt, 3]
                records[prompt, 3] = (
                    max(streak, 0) + 1
                    if total == count
                    else min(streak, 0) - 1
                    if total == 0
                    else 0
                )
            step += 1
        assert sorted(fed) == wanted.tolist(), epoch
    assert loader.table is not None
    assert loader.table.passes is not None
    assert np.array_equal(loader.table.passes.records.numpy(), records)


def test_drawn_prompts_are_more_informative_than_random_ones() -> None:
    def share_of_mixed(policy: PassRate) -> float:
        loader = make(policy, n=700, batch_size=70)
        batches = train(loader, 30)[10:]
        index = torch.tensor(batches).flatten()
        p = ability(index)
        return float((1 - p**4 - (1 - p) ** 4).mean())

    wide = share_of_mixed(PassRate(prompts=70, rule="band", low=0.0, high=1.0))
    posterior = share_of_mixed(PassRate(prompts=70, decay=1.0))
    assert posterior > wide + 0.15, (posterior, wide)


@pytest.mark.parametrize("rule", ["posterior", "gaussian"])
def test_resuming_inside_a_round(rule: Any) -> None:
    def fresh() -> DataLoader[int]:
        return make(PassRate(prompts=18, rule=rule, retry_hard=0.5, explore=0.0))

    loader = fresh()
    train(loader, 3)
    iterator = iter(loader)
    index_of_each, rewards = rollouts_of(next(iterator), 9)
    loader.update(rewards, index_of_each)
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    rest = []
    for index in iterator:
        index_of_each, rewards = rollouts_of(index, 10 + len(rest))
        loader.update(rewards, index_of_each)
        rest.append(index.tolist())
    expected = rest + train(loader, 4, 50)
    resumed = fresh()
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    found = train(resumed, 1, 10)
    assert found + train(resumed, 4, 50) == expected
    assert resumed.table is not None
    assert loader.table is not None
    assert torch.equal(resumed.table.passes.records, loader.table.passes.records)  # type: ignore


def test_one_reward_for_each_prompt_needs_no_index() -> None:
    loader = make(PassRate(prompts=6, rollouts=8), batch_size=6)
    for index in loader:
        mean = loader.update(torch.full((6,), 0.25))
        assert float(mean) == 0.25
        assert loader.table is not None
        assert loader.table.passes is not None
        assert loader.table.passes.right[index].tolist() == [2.0] * 6
    assert loader.epoch == 1


def test_a_round_without_rewards_warns() -> None:
    loader = make(PassRate(prompts=6))
    with pytest.warns(UserWarning, match=r"PassRate selects by scores, but none were .* epoch 1"):
        list(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(make(PassRate(prompts=6)), 3)


def test_a_loader_refuses_rewards_outside_the_range_and_goes_on() -> None:
    loader, other = make(PassRate(prompts=12)), make(PassRate(prompts=12))
    for step, index in enumerate(loader):
        with pytest.raises(ValueError, match=r"rewards must be in \[0, 1\]"):
            loader.update(torch.full((6,), 3.0), index)
        index_of_each, rewards = rollouts_of(index, step)
        loader.update(rewards, index_of_each)
    train(other, 1)
    assert train(loader, 3) == train(other, 3)


def test_errors_about_rewards_say_rewards() -> None:
    loader = make(PassRate(prompts=12))
    index = next(iter(loader))
    with pytest.raises(TypeError, match=r"^rewards must be floating point, got torch\.int64"):
        loader.update(torch.ones(6, dtype=torch.int64), index)
    with pytest.raises(TypeError, match=r"^rewards must be floating point, got torch\.int64"):
        loader.update(torch.ones(6, 2, dtype=torch.int64), index, reduce="mean")
    with pytest.raises(ValueError, match=r"^rewards must have shape \[b\], one reward for each"):
        loader.update(torch.ones(6, 2), index)
    with pytest.raises(TypeError, match=r"^losses must be floating point"):
        loader.update(torch.ones(6, dtype=torch.int64), index, scores=torch.ones(6))
    with pytest.raises(TypeError, match=r"^rewards must be floating point"):
        loader.table.update(index, torch.ones(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^index must have the shape of rewards"):
        loader.table.update(index, torch.ones(5))
    assert loader.table.passes is not None
    assert not loader.table.passes.rollouts.any()


def test_without_explore_there_is_an_error_if_all_have_retired() -> None:
    policy = PassRate(prompts=2, retire_above=0.9, evidence=1)
    table = table_of(policy, [[1.0]] * 4)
    with pytest.raises(
        RuntimeError, match=r"all 4 prompts have retired.*with explore, which needs keep instead"
    ):
        chosen(policy, table)
    with pytest.raises(RuntimeError, match=r"take turns with explore$"):
        chosen(PassRate(keep=0.5, retire_above=0.9, evidence=1), table)


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (
            PassRate(prompts=10, retire_above=0.9, evidence=1),
            {},
            "all 20 prompts have retired, by retire_above=0.9 .*: end the training",
        ),
        (
            PassRate(keep=0.5, retire_above=0.9, evidence=1, every=Steps(2)),
            {},
            "all 20 prompts have retired, by retire_above=0.9 .*: end the training",
        ),
        (
            Sources(
                policy=PassRate(prompts=10, retire_above=0.9, evidence=1),
                groups=torch.arange(20) % 2,
                weights=(1, 0),
            ),
            {},
            r"all prompts of the sources .* \(1, 0\) at epoch 1: end the training",
        ),
        (
            PassRate(keep=0.5, retire_above=0.9, evidence=1, explore=0.1),
            {"drop_last": True},
            "the 1 samples kept in epoch 3 out of 20, of which 20 have retired, got True",
        ),
    ],
    ids=["prompts", "steps", "sources", "drop_last"],
)
def test_a_training_that_retires_all_prompts_says_so(
    policy: Policy, options: dict[str, Any], message: str
) -> None:
    loader = DataLoader(Numbers(20), 2, policy=policy, seed=1, **options)
    error = ValueError if options else RuntimeError

    def train_on() -> None:
        for _ in range(20):
            for index in loader:
                loader.update(torch.ones(len(index)), index)

    with pytest.raises(error, match=message):
        train_on()


def test_a_table_without_a_record_is_refused() -> None:
    with pytest.raises(ValueError, match="table must record passes for PassRate"):
        PassRate(prompts=2).select(ScoreTable(4, "cpu"), 2, seed=0, epoch=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_does_not_matter(dtype: torch.dtype) -> None:
    policy = PassRate(prompts=12, rule="gaussian", target=0.3, decay=0.3, retire_below=0.0)
    wanted = train(make(policy), 5)
    torch.set_default_dtype(dtype)
    try:
        assert train(make(policy), 5) == wanted
        assert make(policy).stats().keys() == make(policy).stats().keys()
    finally:
        torch.set_default_dtype(torch.float32)


def test_lengths() -> None:
    loader = make(PassRate(prompts=20, warmup=1), batch_size=8)
    assert (len(loader), loader.total_steps(3)) == (8, 8 + 3 + 3)
    sampler = PruningSampler(30, PassRate(keep=lambda step: 0.5 if step else 0.1))
    assert sampler.num_selected == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass either keep or prompts, got keep=None, prompts=None"),
        ({"keep": 0.5, "prompts": 3}, "pass either keep or prompts, got keep=0.5, prompts=3"),
        ({"prompts": 0}, "prompts must be at least 1, got 0"),
        ({"keep": 1.5}, "keep must be in (0, 1], got 1.5"),
        ({"rule": "best"}, "rule must be one of posterior, band, gaussian, got 'best'"),
        ({"target": 1.5}, "target must be in [0, 1], got 1.5"),
        ({"width": 0.0}, "width must be in [1e-6, inf), got 0.0"),
        ({"low": -0.1}, "low must be in [0, 1], got -0.1"),
        ({"low": 0.5, "high": 0.4}, "high must be in [0.5, 1], got 0.4"),
        ({"prior": (1.0, 0.5)}, "prior must be in [1, 1e30], got 0.5"),
        ({"decay": -0.5}, "decay must be in [0, 1], got -0.5"),
        ({"rollouts": 0}, "rollouts must be in [1, 2147483648), got 0"),
        ({"evidence": 0}, "evidence must be in [1, 2147483647), got 0"),
        ({"retry_easy": 1.1}, "retry_easy must be in [0, 1], got 1.1"),
        ({"retry_hard": math.nan}, "retry_hard must be in [0, 1], got nan"),
        ({"retire_above": 2.0}, "retire_above must be in [0, 1], got 2.0"),
        (
            {"retire_above": 0.2, "retire_below": 0.2},
            "retire_below must be below retire_above=0.2, got 0.2",
        ),
        ({"rescale": True}, "rescale must be False for PassRate, got True"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    wanted = {} if not options or "keep" in options or "prompts" in options else {"prompts": 3}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        PassRate(**wanted, **options)


def test_options_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="prompts must be at most the 60 samples, got 61"):
        make(PassRate(prompts=61))
    with pytest.raises(ValueError, match="every must be a number of epochs with prompts"):
        PassRate(prompts=3, every=Steps(2))
    with pytest.raises(ValueError, match=r"retire_above must be None with every=Steps\(window=0"):
        PassRate(keep=0.5, every=Steps(window=0.5), retire_above=0.9)
    with pytest.raises(TypeError, match="prior must be two numbers, got 3"):
        PassRate(prompts=3, prior=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_per_class must be 0 for PassRate, got 1"):
        PassRate(keep=0.5, min_per_class=1, labels=[0, 1])
    assert PassRate(prompts=3, prior=[1, np.float32(2.5)]).prior == (1.0, 2.5)  # type: ignore


def test_explore_brings_retired_prompts_back() -> None:
    policy = PassRate(keep=0.5, retire_above=0.9, evidence=1, explore=0.5)
    table = table_of(policy, [[1.0], [1.0], [0.5], [0.5], [0.5], [0.5], [0.5], [0.5]])
    fed = {prompt for e in range(8) for prompt in chosen(policy, table, epoch=e)}
    assert {0, 1} <= fed


@pytest.mark.parametrize("num_retired", [5, 6, 7, 8])
def test_explore_brings_back_only_the_prompts_whose_turn_it_is(num_retired: int) -> None:
    policy = PassRate(keep=0.75, retire_above=0.9, evidence=1, explore=0.2)
    table = table_of(policy, [[1.0]] * num_retired + [[0.5]] * (8 - num_retired))
    turns = []
    for epoch in range(8):
        prompts = set(chosen(policy, table, epoch=epoch))
        assert prompts >= set(range(num_retired, 8))
        turns += [prompt for prompt in prompts if prompt < num_retired]
    assert sorted(turns) == list(range(num_retired))
