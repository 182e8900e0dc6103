"""The Trainer of Hugging Face transformers."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers, loss_of
from torch import Tensor, nn
from torch.utils.data import Dataset

from dynloader import (
    UCB,
    DataLoader,
    EpsilonGreedy,
    InfoBatch,
    Policy,
    RandomDynamic,
    ScoreTable,
    Steps,
)

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from dynloader.integrations.transformers import PruningTrainer  # noqa: E402


class Rows(Dataset[dict[str, Any]]):
    """A dataset of columns. The model does not use "unused"; "number" identifies the sample."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"number": torch.tensor(float(number)), "labels": number % 3, "unused": number}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 3)

    def forward(self, number: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.linear(number.unsqueeze(1) / 100)
        return {"loss": logits.mean(), "logits": logits}


class Recorder(PruningTrainer):
    """Records the samples of each step, and returns losses that identify them."""

    steps: list[list[int]]

    def losses(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        assert set(inputs) == {"number", "labels"}
        numbers = inputs["number"].long()
        if not hasattr(self, "steps"):
            self.steps = []
        self.steps.append(numbers.tolist())
        return loss_of(numbers) + 0 * super().losses(outputs, inputs)


def trained(folder: Path, policy: Policy, *callbacks: Any, **options: Any) -> Recorder:
    ours: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    given = {name: options.pop(name) for name in ("loader_options",) if name in options}
    arguments = transformers.TrainingArguments(str(folder), **ours | options)
    data: dict[str, Any] = {"train_dataset": Rows(), "eval_dataset": Rows()}
    trainer = Recorder(Model(), arguments, **data, **given, policy=policy, callbacks=[*callbacks])
    for callback in callbacks:
        callback.trainer = trainer
    trainer.train(options.get("resume_from_checkpoint"))
    return trainer


@pytest.mark.parametrize("options", [{}, {"dataloader_num_workers": 2}])
@pytest.mark.parametrize("policy", [UCB(keep=0.5, every=1), InfoBatch(anneal=None)])
def test_scores_reach_their_samples(
    policy: Policy, options: dict[str, Any], tmp_path: Path
) -> None:
    trainer = trained(tmp_path, policy, **options)
    loader = trainer.loader
    assert loader is not None
    assert trainer.state.global_step == len(trainer.steps) == 4 * len(loader)
    assert len(loader) == -(-loader.total_steps(4) // 4)
    ledger = ScoreTable(100, device="cpu")
    ledger.scoring = policy.scoring
    for numbers in trainer.steps:
        ledger.update(torch.tensor(numbers), loss_of(torch.tensor(numbers)))
    assert torch.equal(ledger.records, loader.table.records.cpu())
    evaluated = trainer.evaluate()
    assert "eval_loss" in evaluated


def test_pruned_epochs_share_their_steps_equally(tmp_path: Path) -> None:
    trainer = trained(tmp_path, UCB(keep=0.5, every=1))
    assert (
        trainer.state.global_step == 36
    )  # 13 + 7 + 7 + 7 = 34, rounded up to four epochs of equal length
    kept = [
        {number for step in trainer.steps[9 * e : 9 * e + 9] for number in step} for e in (1, 2)
    ]
    assert [len(each) for each in kept] == [50, 50]


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_learning_rate_ends_at_zero(accumulated: int, tmp_path: Path) -> None:
    trainer = trained(
        tmp_path,
        EpsilonGreedy(keep=0.5, every=1),
        gradient_accumulation_steps=accumulated,
        lr_scheduler_type="linear",
    )
    logs = [each for each in trainer.state.log_history if "learning_rate" in each]
    assert len(logs) == trainer.state.global_step == trainer.state.max_steps
    assert set(trainer.lr_scheduler.get_last_lr()) == {0.0}
    assert len(trainer.steps) == 36
    losses = [each["loss"] for each in logs]
    wanted = [float(loss_of(torch.tensor(step)).mean()) for step in trainer.steps]
    if accumulated == 1:
        assert losses == pytest.approx(wanted, rel=1e-3)
    else:
        assert losses[0] == pytest.approx(sum(wanted[:4]) / 4, rel=1e-3)


@pytest.mark.parametrize(("step", "accumulated"), [(4, 1), (9, 1), (13, 1), (4, 4), (6, 4)])
def test_resumed_from_a_checkpoint(step: int, accumulated: int, tmp_path: Path) -> None:
    def options(folder: str) -> Any:
        return transformers.TrainingArguments(
            str(tmp_path / folder),
            per_device_train_batch_size=8,
            num_train_epochs=4,
            gradient_accumulation_steps=accumulated,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="steps",
            save_steps=step,
        )

    def made(folder: str) -> Recorder:
        return Recorder(
            Model(), options(folder), train_dataset=Rows(), policy=UCB(keep=0.5, every=1)
        )

    whole, resumed = made("whole"), made("resumed")
    whole.train()
    assert len(whole.steps) == 36
    resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
    num_done = {(4, 4): 4 + 4 + 1 + 4, (6, 4): 18}.get((step, accumulated), step)
    assert resumed.steps == whole.steps[num_done:]
    assert resumed.state.global_step == whole.state.global_step == resumed.state.max_steps
    assert resumed.loader is not None
    assert whole.loader is not None
    assert torch.equal(resumed.loader.table.records, whole.loader.table.records)
    assert resumed.lr_scheduler.get_last_lr() == whole.lr_scheduler.get_last_lr() == [0.0, 0.0]


WITHIN = [Steps(window=0.25), Steps(2), Steps(window=0.1, warmup=5)]


@pytest.mark.parametrize(("accumulated", "num_workers"), [(1, 0), (3, 0), (3, 2)])
@pytest.mark.parametrize("every", WITHIN, ids=str)
def test_selections_within_an_epoch(
    every: Steps, accumulated: int, num_workers: int, tmp_path: Path
) -> None:
    """They are those of a loop that fetches all batches of a step before it trains on them."""
    options = {"dataloader_num_workers": num_workers, "gradient_accumulation_steps": accumulated}
    policy = UCB(keep=0.5, every=every)
    trainer = trained(tmp_path, policy, num_train_epochs=2, **options)
    assert trainer.loader is not None
    loader = DataLoader(
        Numbers(100),
        8,
        policy=policy,
        seed=trainer.args.seed,
        num_workers=num_workers,
        return_index=True,
        steps_per_epoch=len(trainer.loader),
    )
    assert loader.table is not None
    wanted = []
    for _ in range(2):
        batches = iter(loader)
        while step := list(itertools.islice(batches, accumulated)):
            for _, index in step:
                loader.update(loss_of(index), index)
                wanted.append(index.tolist())
    assert trainer.steps == wanted
    assert torch.equal(trainer.loader.table.records, loader.table.records)


def test_scores_from_before_the_training_decide_the_first_window(tmp_path: Path) -> None:
    table = ScoreTable(100, "cpu")
    table.update(torch.arange(100), torch.arange(100.0))
    trainer = trained(
        tmp_path,
        UCB(keep=0.48, every=Steps(window=1.0)),
        num_train_epochs=1,
        loader_options={"table": table},
    )
    assert sorted(number for step in trainer.steps for number in step) == [*range(52, 100)]


@pytest.mark.parametrize(("step", "accumulated"), [(2, 1), (5, 1), (2, 3)])
@pytest.mark.parametrize("every", WITHIN, ids=str)
def test_resumed_between_selections(
    every: Steps, step: int, accumulated: int, tmp_path: Path
) -> None:
    options = {
        "num_train_epochs": 2,
        "gradient_accumulation_steps": accumulated,
        "save_strategy": "steps",
        "save_steps": step,
    }
    policy = UCB(keep=0.5, every=every)
    whole = trained(tmp_path / "whole", policy, **options)
    checkpoint = str(tmp_path / "whole" / f"checkpoint-{step}")
    resumed = trained(tmp_path / "resumed", policy, resume_from_checkpoint=checkpoint, **options)
    assert resumed.steps == whole.steps[step * accumulated :]
    assert resumed.loader is not None
    assert whole.loader is not None
    assert torch.equal(resumed.loader.table.records, whole.loader.table.records)


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path: Path) -> None:
    trainer = trained(tmp_path, UCB(keep=0.5, every=1), save_strategy="epoch")
    folder = tmp_path / "checkpoint-9"
    (folder / "dynloader.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"of a PruningTrainer.*checkpoint-9: it has no"):
        trainer.train(str(folder))
    other = Recorder(
        Model(), trainer.args, train_dataset=Rows(), policy=RandomDynamic(keep=0.5, every=1)
    )
    with pytest.raises(ValueError, match=r"UCB.*RandomDynamic|RandomDynamic.*UCB"):
        other.train(str(tmp_path / "checkpoint-18"))


class Logs(transformers.TrainerCallback):  # type: ignore[misc]
    """Logs to a folder, and adds metrics where a user would."""

    trainer: Recorder

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        assert self.trainer.loader is not None
        self.log = self.trainer.loader.log_to(self.folder, resume=True)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.log.add(number=round(state.epoch))

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.log.add(evaluated=round(state.epoch))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("policy", [UCB(keep=0.5, every=1), RandomDynamic(keep=0.5, every=1)])
@pytest.mark.parametrize("accumulated", [1, 4])
def test_every_epoch_is_in_the_log(policy: Policy, accumulated: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"gradient_accumulation_steps": accumulated, "eval_strategy": "epoch"}
    trainer = trained(tmp_path, policy, Logs(tmp_path / "run"), **options)
    lines = lines_of(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert [line["number"] for line in lines] == [1, 2, 3, 4]
    assert [line["evaluated"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["samples"] == sum(map(len, trainer.steps))
    with np.load(tmp_path / "run" / "samples.npz") as samples:
        assert samples["visits"].sum() == sum(map(len, trainer.steps))


def test_the_log_of_a_training_that_ends_within_an_epoch(tmp_path: Path) -> None:
    trainer = trained(
        tmp_path, UCB(keep=0.5, every=1), Logs(tmp_path / "run"), max_steps=16, num_train_epochs=1
    )
    lines = lines_of(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [0, 1]
    assert [line["samples"] for line in lines] == [100, sum(map(len, trainer.steps))]


@pytest.mark.parametrize("step", [4, 9, 18, 36])
def test_a_resumed_log_has_every_epoch(step: int, tmp_path: Path) -> None:
    """The checkpoint lies within an epoch, between two epochs, or after the last."""
    policy = UCB(keep=0.5, every=1)
    options = {"save_strategy": "steps", "save_steps": step}
    trained(tmp_path, policy, Logs(tmp_path / "whole"), **options)
    whole = lines_of(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    trained(
        tmp_path, policy, Logs(tmp_path / "run"),
        resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"), **options,
    )  # fmt: skip
    kept = ("epoch", "number", "samples", "num_selected", "score_50", "always")
    assert [[line[key] for key in kept] for line in lines_of(tmp_path / "run")] == [
        [line[key] for key in kept] for line in whole
    ]
