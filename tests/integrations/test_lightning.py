"""Lightning with one process. For two processes, see test_distributed.py."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ledger import Numbers, loss_of
from torch import Tensor, nn

from dynloader import (
    UCB,
    ArrayDataset,
    DataLoader,
    Full,
    InfoBatch,
    Policy,
    ProgressLR,
    RandomDynamic,
    schedules,
)

lightning = pytest.importorskip("lightning.pytorch")
from dynloader.integrations.lightning import FollowEpochs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::Warning:lightning", "ignore:.*:FutureWarning")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Recorder(lightning.LightningModule):  # type: ignore[misc]
    """Records the batches, and when validation and epochs take place."""

    def __init__(self, loader: DataLoader[Any], inside: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.loader = loader
        self.epochs: list[list[list[int]]] = []
        self.num_validations = 0
        self.predicted: list[int] = []
        if inside:
            self.train_dataloader = lambda: loader

    def on_train_epoch_start(self) -> None:
        self.epochs.append([])

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if not self.epochs:  # resumed within an epoch
            self.epochs.append([])
        self.epochs[-1].append(batch.tolist())
        return self.loader.update(loss_of(batch) + 0 * self.weight)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        assert set(batch.tolist()) <= {0, 1, 2, 3}
        self.num_validations += 1

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return batch

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.total_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    total_steps = 1000


def trainer(folder: Path | str, **options: Any) -> Any:
    ours: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "max_epochs": 4,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lightning.Trainer(**ours | options)


def made(**options: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(101), 8, policy=UCB(keep=0.5, every=1), **options)


def validation() -> Any:
    return torch.utils.data.DataLoader(Numbers(4), 4)


def wanted(epochs: int = 4, **options: Any) -> list[list[list[int]]]:
    loader = made(**options)
    found = []
    for _ in range(epochs):
        found.append([])
        for batch in loader:
            loader.update(loss_of(batch))
            found[-1].append(batch.tolist())
    return found


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_scores_and_validation(
    inside: bool, distributed: bool, num_workers: int, tmp_path: Path
) -> None:
    module = Recorder(made(num_workers=num_workers), inside)
    runs = trainer(tmp_path, callbacks=[FollowEpochs()], use_distributed_sampler=distributed)
    given = {} if inside else {"train_dataloaders": module.loader}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*expects .* batches")
        runs.fit(module, val_dataloaders=validation(), **given)
    assert module.epochs == wanted()
    assert [len(epoch) for epoch in module.epochs] == [13, 7, 7, 7]
    assert module.num_validations == 4
    assert runs.global_step == module.loader.total_steps(4)


def test_reloading_every_epoch_needs_no_callback(tmp_path: Path) -> None:
    module = Recorder(made())
    runs = trainer(tmp_path, reload_dataloaders_every_n_epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*expects .* batches")
        runs.fit(module, module.loader, validation())
    assert module.epochs == wanted()
    assert module.num_validations == 4


def test_without_either_validation_is_left_out_after_shorter_epochs(tmp_path: Path) -> None:
    """README says so. If Lightning changes this, the callback is no longer needed."""
    module = Recorder(made())
    with pytest.warns(
        UserWarning, match="expects 13 batches in every epoch, but .* has 7"
    ) as found:
        trainer(tmp_path).fit(module, module.loader, validation())
    assert sum("FollowEpochs" in str(warning.message) for warning in found) == 1
    assert module.epochs == wanted()
    assert module.num_validations == 1


def test_steps_per_epoch(tmp_path: Path) -> None:
    module = Recorder(made(steps_per_epoch=9))
    trainer(tmp_path).fit(module, module.loader, validation())
    assert [len(epoch) for epoch in module.epochs] == [9] * 4
    assert module.num_validations == 4


def test_the_learning_rate_ends_where_it_should(tmp_path: Path) -> None:
    module = Recorder(made())
    module.total_steps = module.loader.total_steps(4)
    runs = trainer(tmp_path, callbacks=[FollowEpochs()], accumulate_grad_batches=1)
    runs.fit(module, module.loader, validation())
    assert runs.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_accumulated_gradients_are_stepped_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    module = Recorder(made())
    runs = trainer(tmp_path, callbacks=[FollowEpochs()], accumulate_grad_batches=4)
    runs.fit(module, module.loader, validation())
    assert runs.global_step == 4 + 3 * 2


@pytest.mark.parametrize("every", [3, 13, 16])
def test_resumed_from_a_checkpoint(every: int, tmp_path: Path) -> None:
    def fit(module: Recorder, name: str | None = None, **options: Any) -> Any:
        checkpoints = lightning.callbacks.ModelCheckpoint(
            tmp_path, "{step}", every_n_train_steps=every, save_top_k=-1
        )
        options |= {"enable_checkpointing": True, "callbacks": [FollowEpochs(), checkpoints]}
        runs = trainer(tmp_path, **options)
        path = None if name is None else str(tmp_path / name)
        runs.fit(module, module.loader, validation(), ckpt_path=path, weights_only=False)
        return runs

    whole = Recorder(made())
    fit(whole)
    resumed = Recorder(made())
    fit(resumed, f"step={every}.ckpt")
    flat = [batch for epoch in whole.epochs for batch in epoch]
    assert [batch for epoch in resumed.epochs for batch in epoch] == flat[every:]
    assert torch.equal(whole.loader.table.records, resumed.loader.table.records)


def test_overfit_and_predict(tmp_path: Path) -> None:
    loader = DataLoader(Numbers(40), 8, policy=RandomDynamic(keep=0.5, every=1), return_index=False)
    module = Recorder(loader)
    module.training_step = lambda batch, batch_idx: loss_of(batch).mean() + 0 * module.weight
    runs = trainer(tmp_path, overfit_batches=2, max_epochs=3)
    with pytest.warns(UserWarning, match="nothing is pruned"):
        runs.fit(module, loader, validation())
    assert runs.global_step == 6
    found = trainer(tmp_path).predict(module, DataLoader(Numbers(40), 8, return_index=True))
    assert torch.cat([numbers for numbers, _ in found]).tolist() == list(range(40))
    with pytest.raises(ValueError, match="to iterate over all samples, use a loader without a"):
        trainer(tmp_path).predict(module, DataLoader(Numbers(40), 8, policy=Full()))


def estimated(kind: str) -> Any:
    """Return a function that makes a scheduler for the number of steps Lightning estimates."""

    def make(optimizer: Any, steps: int) -> Any:
        schedulers = torch.optim.lr_scheduler
        if kind == "one cycle":
            return schedulers.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        if kind == "cosine":
            return schedulers.CosineAnnealingLR(optimizer, steps)
        if kind == "closure":
            return schedulers.LambdaLR(optimizer, lambda step: 1 - step / steps)
        if kind == "partial":
            transformers = pytest.importorskip("transformers")
            return transformers.get_linear_schedule_with_warmup(optimizer, 2, steps)
        warmup = schedulers.LinearLR(optimizer, 0.1, 1.0, 5)
        rest = schedulers.CosineAnnealingLR(optimizer, steps - 5)
        return schedulers.SequentialLR(optimizer, [warmup, rest], [5])

    return make


class Scheduled(Recorder):
    """Uses the scheduler that ``make`` returns, and steps it with the optimizer."""

    def __init__(self, loader: DataLoader[Any], make: Any, num_steps: int | None = None) -> None:
        super().__init__(loader)
        self.make, self.num_steps = make, num_steps

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = self.num_steps or self.trainer.estimated_stepping_batches
        scheduler = {"scheduler": self.make(optimizer, steps), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


TOO_LONG = "schedule has .* steps, which Lightning estimates from the length of one epoch"


@pytest.mark.parametrize("kind", ["one cycle", "cosine", "closure", "partial", "sequential"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_schedule_of_as_many_steps_as_lightning_estimates(
    kind: str, accumulate: int, tmp_path: Path
) -> None:
    module = Scheduled(made(), estimated(kind))
    runs = trainer(tmp_path, callbacks=[FollowEpochs()], accumulate_grad_batches=accumulate)
    makes = module.loader.total_steps(4, accumulate=accumulate)
    message = f"{TOO_LONG}, but the training takes {makes}: use dynloader.ProgressLR"
    with pytest.warns(UserWarning, match=message) as found:
        runs.fit(module, module.loader)
    assert sum("ProgressLR" in str(warning.message) for warning in found) == 1
    assert runs.global_step == makes
    assert runs.optimizers[0].param_groups[0]["lr"] > 0.001


def test_no_number_of_steps_is_right_if_the_losses_decide_it(tmp_path: Path) -> None:
    loader = DataLoader(Numbers(101), 8, policy=InfoBatch(epochs=4))
    module = Scheduled(loader, estimated("cosine"))
    with pytest.warns(UserWarning, match=f"{TOO_LONG}, but the training takes at most 52: use"):
        trainer(tmp_path, callbacks=[FollowEpochs()]).fit(module, loader)


@pytest.mark.parametrize(
    ("loader", "options", "num_steps"),
    [
        (made, {}, 34),
        (made, {"accumulate_grad_batches": 3}, 14),
        (made, {"limit_train_batches": 5}, None),
        (made, {"max_steps": 20}, None),
        (lambda: made(steps_per_epoch=9), {}, None),
        (lambda: DataLoader(Numbers(101), 8, policy=RandomDynamic(keep=0.5)), {}, None),
    ],
)
def test_a_schedule_that_is_right_is_not_warned_of(
    loader: Any, options: dict[str, Any], num_steps: int | None, tmp_path: Path
) -> None:
    module = Scheduled(loader(), estimated("cosine"), num_steps)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*learning-rate schedule")
        runs = trainer(tmp_path, callbacks=[FollowEpochs()], **options)
        runs.fit(module, module.loader)
    assert runs.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("policy", [UCB(keep=0.5), InfoBatch(epochs=4)], ids=["UCB", "InfoBatch"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_schedule_by_progress(policy: Policy, accumulate: int, tmp_path: Path) -> None:
    def make(optimizer: Any, steps: int) -> Any:
        return ProgressLR(optimizer, module.loader, schedules.linear(end=0.1))

    rates: list[float] = []
    module = Scheduled(DataLoader(Numbers(101), 8, policy=policy, epochs=4), make)
    module.on_train_batch_end = lambda *_: rates.append(module.optimizers().param_groups[0]["lr"])
    runs = trainer(tmp_path, callbacks=[FollowEpochs()], accumulate_grad_batches=accumulate)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*learning-rate schedule")
        runs.fit(module, module.loader, validation())
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.01, rel=1e-12)
    assert len(set(rates)) == runs.global_step + (accumulate > 1)


@pytest.mark.parametrize("every", [3, 13, 16])
def test_a_schedule_by_progress_is_resumed(every: int, tmp_path: Path) -> None:
    def fit(name: str | None = None) -> list[float]:
        def make(optimizer: Any, steps: int) -> Any:
            return ProgressLR(optimizer, module.loader, schedules.cosine())

        rates: list[float] = []
        module = Scheduled(made(epochs=4), make, 1)
        module.on_train_batch_end = lambda *_: rates.append(
            module.optimizers().param_groups[0]["lr"]
        )
        checkpoints = lightning.callbacks.ModelCheckpoint(
            tmp_path, "{step}", every_n_train_steps=every, save_top_k=-1
        )
        runs = trainer(tmp_path, enable_checkpointing=True, callbacks=[FollowEpochs(), checkpoints])
        path = None if name is None else str(tmp_path / name)
        runs.fit(module, module.loader, ckpt_path=path, weights_only=False)
        return rates

    whole = fit()
    assert whole[-1] == 0
    assert fit(f"step={every}.ckpt") == whole[every:]


class Logged(Recorder):
    """Logs from the start of training, and adds metrics where a user would."""

    folder: Path

    def on_train_start(self) -> None:
        self.log_of_run = self.loader.log_to(self.folder, resume=True)

    def on_validation_epoch_end(self) -> None:
        self.log_of_run.add(validated=self.current_epoch)

    def on_train_epoch_end(self) -> None:
        self.log_of_run.add(number=self.current_epoch)


@pytest.mark.parametrize("policy", [UCB(keep=0.5, every=1), RandomDynamic(keep=0.5, every=1)])
@pytest.mark.parametrize("arrays", [False, True])
def test_every_epoch_is_in_the_log(policy: Policy, arrays: bool, tmp_path: Path) -> None:
    data: Any = ArrayDataset(torch.arange(101)) if arrays else Numbers(101)
    module = Logged(DataLoader(data, 8, policy=policy))
    module.folder = tmp_path / "run"
    runs = trainer(tmp_path, callbacks=[FollowEpochs()])
    runs.fit(module, module.loader, validation())
    lines = [json.loads(line) for line in (tmp_path / "run" / "epochs.jsonl").open()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert [line["number"] for line in lines] == [0, 1, 2, 3]
    assert [line["validated"] for line in lines] == [0, 1, 2, 3]
    fed = [sum(map(len, epoch)) for epoch in module.epochs]
    assert [line["samples"] for line in lines] == np.cumsum(fed).tolist()
    assert all(line["epoch_seconds"] > 0 for line in lines)


def test_the_log_of_a_training_that_ends_within_an_epoch(tmp_path: Path) -> None:
    module = Logged(made())
    module.folder = tmp_path / "run"
    trainer(tmp_path, callbacks=[FollowEpochs()], max_steps=16).fit(module, module.loader)
    lines = [json.loads(line) for line in (tmp_path / "run" / "epochs.jsonl").open()]
    assert [(line["epoch"], line["samples"]) for line in lines] == [(0, 101), (1, 125)]
