"""In the Trainer of Hugging Face transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ledger import loss_of
from torch import Tensor, nn
from torch.utils.data import Dataset

from dynloader import UCB, EpsilonGreedy, InfoBatch, Policy, RandomDynamic, ScoreTable

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from dynloader.integrations.transformers import PruningTrainer  # noqa: E402


class Rows(Dataset[dict[str, Any]]):
    """Columns; one of them is not for the model, and one says which sample it is."""

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
    """Records which samples it was given, and gives losses that tell them apart."""

    steps: list[list[int]]

    def losses(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        assert set(inputs) == {"number", "labels"}
        numbers = inputs["number"].long()
        if not hasattr(self, "steps"):
            self.steps = []
        self.steps.append(numbers.tolist())
        return loss_of(numbers) + 0 * super().losses(outputs, inputs)


def trained(folder: Path, policy: Policy, **options: Any) -> Recorder:
    ours: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    arguments = transformers.TrainingArguments(str(folder), **ours | options)
    trainer = Recorder(Model(), arguments, train_dataset=Rows(), eval_dataset=Rows(), policy=policy)
    trainer.train()
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


def test_epochs_are_pruned_and_have_the_steps_they_would_have_together(tmp_path: Path) -> None:
    trainer = trained(tmp_path, UCB(keep=0.5, every=1))
    assert trainer.state.global_step == 36  # 13 + 7 + 7 + 7 = 34, in four epochs of one length
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
