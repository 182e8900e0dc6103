"""One training run of experiments/speedrun.py, on full data or on the samples of a policy."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch
from speedrun_model import WIDTHS, SpeedrunNet
from torch import Tensor

import dynloader
from dynloader import transforms

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings, tuned once for full data (experiments/README.md) and shared by all methods.

    Learning rate and weight decay are those of a batch of 1024, as in cifar10-airbench. Both are
    scaled by batch size and momentum.

    Attributes:
        widths: a key of ``WIDTHS``.
        batch_size: number of images per step.
        lr: peak learning rate.
        weight_decay: total decay of a step of 1024 images, independent of ``lr``.
        momentum: Nesterov momentum.
        bias_scale: learning rate of the batch-norm biases relative to the other parameters.
        label_smoothing: share of the target spread over all classes.
        schedule: "triangular" or "constant".
        augment: whether to translate and flip images.
        whitening_images: number of training images from which to compute the whitening filters, the
            first ones. Folders are read class by class, so 5,000 of CIFAR-10 are of one class.
        precision: "bf16" (autocast) or "fp32".
    """

    widths: str = "small"
    batch_size: int = 512
    lr: float = 11.5
    weight_decay: float = 0.0077
    momentum: float = 0.85
    bias_scale: float = 64.0
    label_smoothing: float = 0.2
    schedule: str = "triangular"
    augment: bool = True
    whitening_images: int = 5000
    precision: str = "bf16"


@dataclasses.dataclass(frozen=True)
class Images:
    """Decoded images, uint8 [n, 3, 32, 32], and labels, int64 [n], for training and testing."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Training:
    """A network, its data and its schedule.

    Args:
        images: the data.
        policy: chooses the samples of each epoch; ``Full()`` keeps all.
        epochs: number of epochs.
        seed: seed of the weights, order, augmentation and selection.
        recipe: all other settings.
        rescores: score each batch by another forward pass, without augmentation.
    """

    def __init__(
        self,
        images: Images,
        policy: dynloader.Policy,
        epochs: int,
        seed: int,
        recipe: Recipe,
        *,
        rescores: bool = False,
    ) -> None:
        self.images, self.epochs, self.recipe = images, epochs, recipe
        torch.manual_seed(seed)
        normalize = transforms.Normalize(MEAN, STD)
        self._dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        final = [normalize, transforms.Cast(self._dtype), transforms.ToChannelsLast()]
        augmentation = [
            transforms.RandomCrop(32, padding=2, padding_mode="reflect"),
            transforms.AlternatingFlip(),
        ]
        table = dynloader.ScoreTable(len(images.train), "cpu")
        self.loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
            dynloader.ArrayDataset(images.train, images.train_labels),
            recipe.batch_size,
            drop_last=True,
            policy=policy,
            table=table,
            seed=seed,
            return_index=rescores,
            transforms=(augmentation if recipe.augment else []) + final,
        )
        self.model = SpeedrunNet(
            normalized(images.train[: recipe.whitening_images]), WIDTHS[recipe.widths]
        ).to(memory_format=torch.channels_last)
        self.optimizer = self._optimizer()
        self.num_steps = self.loader.total_steps(epochs)
        self.steps = self.samples = 0
        self.after_epoch: Callable[[], None] | None = None

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        # Momentum sums up to 1 / (1 - momentum) gradients, each of which is a mean over a batch.
        kilostep = 1 + 1 / (1 - recipe.momentum)
        self._peak = recipe.lr * recipe.batch_size / 1024 / kilostep
        decay = recipe.weight_decay * recipe.batch_size / 1024 / kilostep
        biases = [p for name, p in self.model.named_parameters() if name.endswith("norm.bias")]
        weights = [
            p
            for name, p in self.model.named_parameters()
            if p.requires_grad and not name.endswith("norm.bias")
        ]
        groups = [
            {"params": weights, "weight_decay": decay / self._peak, "scale": 1.0},
            {
                "params": biases,
                "weight_decay": decay / (self._peak * recipe.bias_scale),
                "scale": recipe.bias_scale,
            },
        ]
        return torch.optim.SGD(groups, lr=self._peak, momentum=recipe.momentum, nesterov=True)

    def run(self) -> dict[str, Any]:
        """Train and test, and return the results. Times are processor seconds."""
        history, seconds = [], 0.0
        for epoch in range(self.epochs):
            begin = time.process_time()
            losses = self._train_epoch(epoch)
            seconds += time.process_time() - begin
            history.append({"samples": self.samples, "cpu_seconds": seconds} | distribution(losses))
            if self.after_epoch is not None:
                self.after_epoch()
            assert self.loader.epoch == epoch + 1
        stats = self.loader.stats()
        return {
            "samples": self.samples,
            "steps": self.steps,
            "cpu_seconds": seconds,
            "select_seconds": stats["dynloader/select_seconds"],
            "update_seconds": stats["dynloader/update_seconds"],
            "history": history,
            **self.test(),
        }

    def _train_epoch(self, epoch: int) -> Tensor:
        """Train for one epoch, and return the losses of its samples without label smoothing."""
        recipe, seen = self.recipe, []
        self.model.train()
        is_open = self.loader.has_open_length
        for batch, (images, labels, *index) in enumerate(self.loader):
            # If the losses decide how many samples are kept, the number of steps is unknown.
            if is_open:
                self._set_learning_rate((epoch + batch / len(self.loader)) / self.epochs)
            else:
                self._set_learning_rate(self.steps / self.num_steps)
            with self._autocast():
                logits = self.model(images)
            log_p = logits.float().log_softmax(1)
            plain = -log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
            smooth = -log_p.mean(1)
            losses = (1 - recipe.label_smoothing) * plain + recipe.label_smoothing * smooth
            scores = self._losses_without_augmentation(index[0], labels) if index else plain
            loss = self.loader.update(losses, scores=scores)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.steps += 1
            self.samples += len(labels)
            seen.append(plain.detach())
        return torch.cat(seen)

    @torch.no_grad()
    def _losses_without_augmentation(self, index: Tensor, labels: Tensor) -> Tensor:
        # The statistics of the batch norms are those of training, and must not change here.
        self.model.eval()
        with self._autocast():
            logits = self.model(normalized(self.images.train[index]).to(self._dtype))
        self.model.train()
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    def _set_learning_rate(self, done: float) -> None:
        rate = self._peak
        if self.recipe.schedule == "triangular":
            rate *= triangle(done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    @torch.inference_mode()
    def test(self) -> dict[str, float]:
        """Return the test accuracy, with and without averaging over the mirrored image."""
        self.model.eval()
        num_correct = torch.zeros(2, dtype=torch.int64)
        batches = zip(
            self.images.test.split(1000), self.images.test_labels.split(1000), strict=True
        )
        for images, labels in batches:
            prepared = normalized(images).to(self._dtype)
            with self._autocast():
                plain = self.model(prepared).float()
                both = plain + self.model(prepared.flip(3)).float()
            num_correct += torch.stack(
                [(both.argmax(1) == labels).sum(), (plain.argmax(1) == labels).sum()]
            )
        share = (num_correct.double() / len(self.images.test)).tolist()
        return {"accuracy": share[0], "accuracy_without_mirroring": share[1]}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self._dtype == torch.bfloat16)


def triangle(done: float, start: float = 0.2, peak: float = 0.23, end: float = 0.07) -> float:
    """Return the learning rate relative to its peak, after a fraction ``done`` of training."""
    if done < peak:
        return start + (1 - start) * done / peak
    return 1 + (end - 1) * (done - peak) / (1 - peak)


def distribution(losses: Tensor) -> dict[str, float]:
    """Return statistics of an epoch's losses, which may predict whether pruning pays off."""
    found = dynloader.scores.loss_distribution(losses)._asdict()
    del found["num_samples"]
    return {"loss": found.pop("mean"), **found}


def normalized(images: Tensor) -> Tensor:
    """Normalize uint8 images to float32 [n, 3, 32, 32] in channels-last format."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (MEAN, STD))
    found = (images.float() / 255 - mean) / std
    return found.contiguous(memory_format=torch.channels_last)
