"""The probabilities of trying settled prompts again follow the shares of a round."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
import reference_prompts
import torch
from ledger import Numbers
from reference import top_k
from torch import Tensor

from dynloader import DataLoader, PassRate, PromptRounds, ScoreTable, Sources, Steps
from dynloader.table import Backoff, PassCounting
from dynloader.table._candidates import Candidates
from dynloader.table._passes import PassRecord

N, SEED = 70, 2**63 + 3
SHARES = {"easy_share": 1 / 12, "hard_share": 1 / 6}


def make_policy(**options: Any) -> PassRate:
    return PassRate(**{"prompts": 14, "retry_easy": 0.5, "retry_hard": 0.5} | SHARES | options)


def earned_by(prompt: int, step: int) -> list[float]:
    """Return the rewards of three rollouts: of each seven prompts, one never fails, two never pass.

    The others are all right or all wrong at times.
    """
    chance = [0.0, 0.0, 0.2, 0.4, 0.6, 0.9, 1.0][prompt % 7]
    draws = np.random.default_rng((prompt, step)).random(3)
    return [float(draw < chance) for draw in draws]


def rewards_of(index: Tensor, step: int) -> tuple[Tensor, Tensor]:
    rewards = [earned_by(prompt, step) for prompt in index.tolist()]
    return index.repeat_interleave(3), torch.tensor(rewards).flatten()


def train(loader: DataLoader[int], rounds: int) -> list[list[int]]:
    """Train some rounds and return their batches."""
    batches = []
    for _ in range(rounds):
        for index in loader:
            repeated, rewards = rewards_of(index, loader.epoch)
            loader.update(rewards, repeated)
            batches.append(index.tolist())
    return batches


def retries(table: ScoreTable) -> tuple[float, float]:
    assert table.passes is not None
    return table.passes.retries


def test_by_hand() -> None:
    policy = PassRate(
        prompts=4,
        retry_easy=0.5,
        retry_hard=0.5,
        easy_share=0.25,
        hard_share=0.5,
        retry_step=0.25,
        retry_range=(0.125, 0.875),
    )
    rounds = PromptRounds(policy, 8)
    table = rounds.table
    found = []
    # One of four is all right, as many as may be, and one of four all wrong, fewer than may be.
    # Then none and all. Then nothing is tried. Then three of four and none, and again.
    for rewards in ([1, 0.5, 0.5, 0], [0, 0, 0, 0], [], [1, 1, 1, 0.5], [1, 1, 1, 0.5]):
        prompts = rounds.draw()
        rounds.update(prompts[: len(rewards)], torch.tensor(rewards, dtype=torch.float32))
        found.append(retries(table))
    rounds.draw()
    found.append(retries(table))
    assert found == [
        (0.5, 0.5),  # the first draw knows nothing
        (0.25, 0.75),
        (0.5, 0.5),
        (0.5, 0.5),
        (0.25, 0.75),
        (0.125, 0.875),  # at the ends of the range
    ]


def test_a_prompt_counts_once_in_a_round_by_its_last_visit() -> None:
    rounds = PromptRounds(make_policy(prompts=2, easy_share=0.5, hard_share=0.6), 4)
    rounds.draw()
    rounds.update([0, 0, 1], torch.tensor([1.0, 1.0, 0.0]))
    rounds.update([0], torch.tensor([0.0]))
    assert rounds.table.passes is not None
    assert rounds.table.passes.next_retries() == (0.51, 0.49)  # 0 of 2 and 2 of 2
    assert retries(rounds.table) == (0.5, 0.5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "band", "low": 0.3, "high": 0.7, "hard_share": None},
        {"rule": "gaussian", "retry_step": 0.3, "retry_range": (0, 1), "easy_share": 0.3},
    ],
    ids=["posterior", "band", "gaussian"],
)
def test_a_training_equals_the_reference(options: dict[str, Any]) -> None:
    policy = make_policy(**options)
    loader = DataLoader(Numbers(N), 5, policy=policy, seed=SEED)
    records, now = np.zeros((N, 4), np.int32), [0.5, 0.5]
    tried, easy, hard = 0, 0, 0
    low, high = policy.retry_range
    all_retries = set()
    for epoch in range(60):
        for kind, (share, count) in enumerate(
            ((policy.easy_share, easy), (policy.hard_share, hard))
        ):
            if share is not None:
                now[kind] = reference_prompts.next_retry(
                    now[kind], share, count, tried, policy.retry_step, low, high
                )
        scores = reference_prompts.pass_scores(
            records,
            rule=("posterior", "band", "gaussian").index(policy.rule),
            low=policy.low,
            high=policy.high,
            retry_easy=now[0],
            retry_hard=now[1],
            seed=SEED,
            epoch=epoch,
        )
        wanted = top_k(scores, 14, seed=SEED, epoch=epoch).tolist()
        stats = loader.stats()
        assert [stats["dynloader/retry_easy"], stats["dynloader/retry_hard"]] == now, epoch
        fed = [prompt for batch in train(loader, 1) for prompt in batch]
        assert sorted(fed) == wanted, epoch
        all_retries.add(tuple(now))
        tried, easy, hard = len(fed), 0, 0
        for prompt in fed:
            passed = sum(earned_by(prompt, epoch))
            counts = records.view(np.float32)[prompt]
            counts[:2] = [0.5 * counts[0] + passed, 0.5 * counts[1] + (3 - passed)]
            records[prompt, 2] += 3
            streak = records[prompt, 3]
            records[prompt, 3] = (
                max(streak, 0) + 1 if passed == 3 else min(streak, 0) - 1 if passed == 0 else 0
            )
            easy, hard = easy + (passed == 3), hard + (passed == 0)
    assert len(all_retries) > 3


def retries_of(loader: DataLoader[int]) -> tuple[float, float]:
    assert loader.table is not None
    return retries(loader.table)


def test_the_share_of_a_round_follows_the_option() -> None:
    def share(**options: Any) -> float:
        # All prompts of the band are drawn alike, so only the back-off decides.
        policy = PassRate(prompts=100, rule="band", low=0.0, high=1.0, **options)
        loader = DataLoader(Numbers(700), 100, policy=policy, seed=5)
        batches = train(loader, 150)
        late = [(prompt, step) for step, batch in enumerate(batches) for prompt in batch]
        late = [(prompt, step) for prompt, step in late if step >= 100]
        return float(np.mean([not any(earned_by(*each)) for each in late]))

    fixed = share()
    wide, narrow = (
        share(retry_hard=0.5, hard_share=wanted, retry_step=0.05) for wanted in (0.3, 0.2)
    )
    assert fixed == pytest.approx(0.394, abs=0.015)  # (1 + 1 + 0.8**3 + 0.6**3 + ...) / 7
    assert wide == pytest.approx(0.3, abs=0.025)
    assert narrow == pytest.approx(0.2, abs=0.025)


def test_resuming_inside_a_round() -> None:
    def fresh() -> DataLoader[int]:
        return DataLoader(Numbers(N), 5, policy=make_policy(retry_step=0.1), seed=SEED)

    whole = fresh()
    expected = train(whole, 20)
    for num_rounds, num_batches in ((7, 0), (7, 1), (8, 2), (11, 3)):
        loader = fresh()
        train(loader, num_rounds)
        iterator = iter(loader)
        for _ in range(num_batches):
            repeated, rewards = rewards_of(next(iterator), loader.epoch)
            loader.update(rewards, repeated)
        file = io.BytesIO()
        torch.save(loader.state_dict(), file)
        file.seek(0)
        resumed = fresh()
        resumed.load_state_dict(torch.load(file, weights_only=True))
        assert train(resumed, 20 - num_rounds) == expected[3 * num_rounds + num_batches :]
        assert retries_of(resumed) == retries_of(whole)


def test_states_of_tables() -> None:
    policy = make_policy()
    rounds = PromptRounds(policy, N, seed=3)
    for step in range(5):
        rounds.update(*rewards_of(torch.tensor(rounds.draw()), step))
    state = rounds.table.state_dict()
    bare = ScoreTable(N, "cpu")  # takes the counting of the state
    bare.load_state_dict(state)
    assert bare.passes is not None
    assert rounds.table.passes is not None
    assert bare.passes.counting == policy.passes
    assert bare.passes.next_retries() == rounds.table.passes.next_retries() != (0.5, 0.5)
    # From a record without adjustments, they begin with the next selection.
    plain = ScoreTable(N, "cpu")
    plain.record_passes(PassCounting(0.5))
    plain.update(*rewards_of(torch.arange(N), 0))
    rounds.table.load_state_dict(plain.state_dict())
    assert retries(rounds.table) == rounds.table.passes.next_retries() == (0.5, 0.5)
    # And one without a record at all forgets them.
    bare.load_state_dict(ScoreTable(N, "cpu").state_dict())
    assert retries(bare) == bare.passes.next_retries() == (0.5, 0.5)
    # One that adjusts in another way begins anew.
    other = ScoreTable(N, "cpu")
    other.record_passes(make_policy(easy_share=None, retry_easy=1.0).passes)
    other.load_state_dict(state)
    assert retries(other) == (1.0, 0.5)
    # A record that adjusts nothing ignores those of a state.
    plain.load_state_dict(state)
    assert retries(plain) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"retries": [0.5]}, r"retries of the state must be two numbers, got \[0.5\]"),
        ({"retries": [0.5, 1.5]}, r"retries of the state must be in \[0.05, 0.95\], got 1.5"),
        ({"retries": [0.0, 0.5]}, r"retries of the state must be in \[0.05, 0.95\], got 0.0"),
        ({"counted": torch.full((N,), 99, dtype=torch.int32)}, "counted .* at most the rollouts"),
        ({"counted": torch.full((N,), -1, dtype=torch.int32)}, "counted .* at least 0"),
        ({"counted": torch.zeros(3, dtype=torch.int32)}, r"counted .* got torch.int32 \[3\]"),
        ({"step": 0.0}, r"retry_step must be in \(0, 1\], got 0.0"),
        ({"low": "none"}, "retry_range must be a number, got 'none'"),
    ],
)
def test_damaged_states_are_refused(wrong: dict[str, Any], message: str) -> None:
    rounds = PromptRounds(make_policy(), N)
    rounds.update(*rewards_of(torch.tensor(rounds.draw()), 0))
    rounds.draw()
    before = retries(rounds.table)
    state = rounds.table.state_dict()
    state["passes"]["backoff"] |= wrong
    with pytest.raises(ValueError, match=message):
        rounds.table.load_state_dict(state)
    del state["passes"]["backoff"]["step"]
    with pytest.raises(ValueError, match=r"state must have the keys \['step'\]"):
        rounds.table.load_state_dict(state)
    assert retries(rounds.table) == before


def test_selections_within_an_epoch_adjust_too() -> None:
    for every in (Steps(2), Steps(window=0.2)):
        policy = make_policy(prompts=None, keep=0.5, every=every, retry_step=0.1)
        loader = DataLoader(Numbers(N), 5, policy=policy, seed=SEED)
        found = []
        for step, index in enumerate(loader):
            repeated, rewards = rewards_of(index, step)
            loader.update(rewards, repeated)
            found.append(retries_of(loader))
        # A window of seven has more than one of six all wrong, whichever are kept.
        assert len(set(found)) > 2, every
        assert found[0] == (0.5, 0.5)


def test_a_part_of_the_prompts_is_drawn_by_the_shares_of_all() -> None:
    """As in windows and sources, whose own prompts may not have been tried."""
    policy = make_policy(prompts=2, retry_step=0.25, easy_share=0.5, hard_share=0.5)
    table = ScoreTable(8, "cpu")
    table.record_passes(policy.passes)
    table.update([0, 1, 2], torch.tensor([1.0, 1.0, 0.5]))
    part = Candidates(table, torch.tensor([5, 6, 0]), 0)
    assert policy.retries(part) == policy.retries(table) == (0.25, 0.75)
    table.count_selection(torch.tensor([5, 6]))
    part = Candidates(table, torch.tensor([5, 6, 0]), 1)
    assert policy.retries(part) == policy.retries(table) == (0.25, 0.75)


def test_the_shares_are_counted_once_for_all_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Sources(policy=make_policy(prompts=None, keep=0.5), groups=torch.arange(N) % 7)
    loader = DataLoader(Numbers(N), 14, policy=policy, seed=SEED)
    counts = []
    adjusted = PassRecord._adjusted
    monkeypatch.setattr(
        PassRecord,
        "_adjusted",
        lambda self, *args: counts.append(len(self)) or adjusted(self, *args),
    )
    train(loader, 3)
    assert counts.count(N) <= 3


def test_within_sources() -> None:
    policy = Sources(policy=make_policy(retry_step=0.1), groups=torch.arange(N) % 2)
    loader = DataLoader(Numbers(N), 14, policy=policy, seed=SEED)
    train(loader, 6)
    plain = DataLoader(Numbers(N), 14, policy=make_policy(retry_step=0.1), seed=SEED)
    train(plain, 1)
    assert retries_of(loader) != (0.5, 0.5)
    assert loader.table is not None
    assert loader.table.passes is not None
    assert loader.table.passes.counting == make_policy(retry_step=0.1).passes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"easy_share": 1.5}, ValueError, "easy_share must be in [0, 1], got 1.5"),
        ({"hard_share": "few"}, TypeError, "hard_share must be a number, got 'few'"),
        ({"retry_step": 0}, ValueError, "retry_step must be in (0, 1], got 0"),
        ({"retry_range": 0.5}, TypeError, "retry_range must be two numbers, got 0.5"),
        ({"retry_range": (0.5, 0.2)}, ValueError, "retry_range must be in [0.5, 1], got 0.2"),
        (
            {"retry_easy": 1.0},
            ValueError,
            "retry_easy must be in retry_range=(0.05, 0.95) with easy_share=0.08",
        ),
    ],
)
def test_wrong_options(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make_policy(**options)


def test_a_table_that_adjusts_otherwise_is_refused() -> None:
    table = ScoreTable(N, "cpu")
    table.record_passes(PassCounting(0.5))
    with pytest.raises(ValueError, match=r"table.passes must adjust .* got None"):
        make_policy().select(table, 14, seed=0, epoch=0)
    with pytest.raises(ValueError, match="retry_step must be in"):
        ScoreTable(N, "cpu").record_passes(
            PassCounting(0.5, 1, Backoff(0.5, 0.5, 0.1, 0.1, -1.0, 0.0, 1.0))
        )
    with pytest.raises(ValueError, match=r"table.passes must count by .*Backoff"):
        DataLoader(Numbers(N), 5, policy=make_policy(), table=table)


@pytest.mark.cuda
def test_on_cuda_they_are_the_same(cuda: torch.device) -> None:
    rounds = [
        PromptRounds(make_policy(retry_step=0.1), N, seed=3, table=ScoreTable(N, device))
        for device in ("cpu", cuda)
    ]
    for step in range(20):
        drawn = [each.draw() for each in rounds]
        assert drawn[0] == drawn[1]
        for each in rounds:
            each.update(*rewards_of(torch.tensor(drawn[0]), step))
    assert retries(rounds[0].table) == retries(rounds[1].table) != (0.5, 0.5)
