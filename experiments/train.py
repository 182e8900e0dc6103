"""Trains the same network with and without pruning, and compares the results.

All methods have the same initial weights for a seed, the same batch size, and a learning rate that
rises and falls over the steps of the method. "full data, same steps" trains on all data for fewer
epochs: it takes as many steps as the methods that prune by scores.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

INSTALL = "pip install --no-build-isolation -e '.[experiments]'"

try:
    import train_data
    import train_report
    from tqdm import tqdm
    from train_models import MODELS

    import dynloader
    from dynloader.bench import machine
    from dynloader.cli._demo import empty
    from dynloader.report.page import write_report
except ImportError as error:
    raise SystemExit(f"{error.name} is missing: {INSTALL}") from None


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: name in tables.
        policy: makes the policy; None trains on all data.
        is_shorter: whether to stop after as many steps as the methods that prune by scores take.
        is_rescored: whether to rescore the dropped samples before each epoch.
        has_full_schedule: whether the learning-rate schedule has the length of training on all
            data, as if it did not know about pruning.
    """

    name: str
    policy: Callable[[argparse.Namespace], dynloader.Policy] | None
    is_shorter: bool = False
    is_rescored: bool = False
    has_full_schedule: bool = False


METHODS = {
    "full": Method("full data", None),
    "same-steps": Method("full data, same steps", None, is_shorter=True),
    "static": Method("static random", lambda a: dynloader.StaticRandom(keep=a.keep)),
    "random": Method(
        "random dynamic",
        lambda a: dynloader.RandomDynamic(keep=a.keep, every=a.every),
    ),
    "epsilon-greedy": Method(
        "epsilon-greedy", lambda a: dynloader.EpsilonGreedy(keep=a.keep, every=a.every)
    ),
    "ucb": Method("UCB", lambda a: dynloader.UCB(keep=a.keep, every=a.every)),
    "infobatch": Method("InfoBatch", lambda a: dynloader.InfoBatch(epochs=a.epochs)),
    "weighted": Method("weighted", lambda a: dynloader.Weighted(keep=a.keep, every=a.every)),
}
PLACES = ("data", "root", "out", "log")
DEFAULT_METHODS = "full,same-steps,random,epsilon-greedy,ucb,infobatch"


class Trainer:
    """One run: a network, its data and its schedule."""

    def __init__(self, data: train_data.Data, method: Method, seed: int, args: Any) -> None:
        self.data, self.method, self.seed, self.args = data, method, seed, args
        self.epochs, self.max_steps = args.epochs, None
        if method.is_shorter:
            self.max_steps = pruned_steps(len(data.train), args)
            self.epochs = shorter_epochs(len(data.train), args)
        self.policy = None if method.policy is None else method.policy(args)
        torch.manual_seed(seed)
        channels = data.train.images.shape[1]
        self.model = MODELS[args.model](channels, data.num_classes).to(args.device)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        # By default, the table would be on the GPU if there is one, even if the network is not.
        on_cpu = self.policy is not None and args.device == "cpu"
        table = dynloader.ScoreTable(len(data.train), "cpu") if on_cpu else None
        self.loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
            data.train.dataset,
            args.batch_size,
            shuffle=True,
            # A last batch of one or two samples ruins batch normalization, and its size depends on
            # the method.
            drop_last=min(args.keep, 0.5) * len(data.train) > args.batch_size,
            num_workers=args.workers,
            pin_memory=args.device.startswith("cuda"),
            policy=self.policy,
            table=table,
            seed=seed,
        )
        self.log = self._log()
        self.after_epoch: Callable[[int], None] | None = None
        self.augmentation = torch.Generator().manual_seed(seed)
        self.mean, self.deviation = (m.to(args.device) for m in data.moments)

    def _log(self) -> dynloader.RunLog | None:
        """Return a log for the report. Without a policy, :meth:`_add_to` writes its epochs."""
        folder = getattr(self.args, "log", None)
        if folder is None:
            return None
        folder = folder / f"{self.method.name.replace(' ', '-')}-{self.seed}"
        shown = {"name": self.method.name, "labels": self.data.train.labels}
        if self.policy is not None:
            return self.loader.log_to(folder, **shown)
        return dynloader.RunLog(folder, seed=self.seed, **shown)

    def run(self, progress: tqdm[Any]) -> dict[str, Any]:
        """Train, and return the results."""
        records = []
        samples = steps = num_rescored = 0
        seconds = cpu_seconds = 0.0
        for epoch in range(self.epochs):
            begin, cpu_begin = self._now(), time.process_time()
            if self.method.is_rescored:
                num_rescored += self._rescore()
            trained, batches, loss = self._train(epoch, steps)
            seconds += self._now() - begin
            cpu_seconds += time.process_time() - cpu_begin
            samples, steps = samples + trained, steps + batches
            is_last = epoch == self.epochs - 1
            measured = is_last or epoch % self.args.eval_every == self.args.eval_every - 1
            records.append(
                {
                    "samples": samples,
                    "steps": steps,
                    "train_seconds": seconds,
                    "cpu_seconds": cpu_seconds,
                    "loss": loss,
                    "accuracy": self.accuracy() if measured else None,
                }
            )
            if self.log is not None:
                self._add_to(self.log, records)
            progress.update()
            if self.after_epoch is not None:
                self.after_epoch(epoch)
        if self.log is not None and self.policy is not None:
            self.log.write_images(self.data.train.dataset)
        stats = self.loader.stats() if self.policy is not None else {}
        return {
            "method": self.method.name,
            "policy": repr(self.policy),
            "seed": self.seed,
            "epochs": records,
            "samples": samples,
            "samples_rescored": num_rescored,
            "steps": steps,
            "train_seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "select_seconds": stats.get("dynloader/select_seconds", 0.0),
            "update_seconds": stats.get("dynloader/update_seconds", 0.0),
            "accuracy": records[-1]["accuracy"],
        }

    def _add_to(self, log: dynloader.RunLog, records: list[dict[str, Any]]) -> None:
        last = records[-1]
        if self.policy is None:
            before = records[-2]["samples"] if len(records) > 1 else 0
            log.write(
                {
                    "epoch": len(records) - 1,
                    "num_selected": last["samples"] - before,
                    "kept_fraction": (last["samples"] - before) / len(self.data.train),
                    "churn": 0.0,
                    "samples": last["samples"],
                    "seconds": last["train_seconds"],
                }
            )
        if last["accuracy"] is not None:
            log.add(accuracy=last["accuracy"])

    def _train(self, epoch: int, steps_before: int) -> tuple[int, int, float]:
        self.model.train()
        samples = batches = 0
        total = torch.zeros((), device=self.args.device)
        length = len(self.loader)
        for batch, (images, labels) in enumerate(self.loader):
            if self.method.has_full_schedule:
                steps_of_all = self.epochs * max(1, len(self.data.train) // self.args.batch_size)
                self._set_learning_rate((steps_before + batch) / steps_of_all)
            elif self.max_steps is None:
                self._set_learning_rate((epoch + batch / length) / self.epochs)
            elif steps_before + batch < self.max_steps:
                self._set_learning_rate((steps_before + batch) / self.max_steps)
            else:
                break
            labels = labels.to(self.args.device, non_blocking=True)
            logits = self.model(self._prepare(images, augment=self.data.augment))
            losses = F.cross_entropy(logits, labels, reduction="none")
            # Do not record scores for full data, which would take time and have no use.
            loss = losses.mean() if self.policy is None else self.loader.update(losses)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            samples, batches = samples + len(labels), batches + 1
            total += losses.detach().sum()
        return samples, batches, float(total) / samples

    def _rescore(self) -> int:
        found = dynloader.scores.rescore(
            self.model, self.loader, prepare=lambda x: self._prepare(x, augment=self.data.augment)
        )
        return len(found.indices)

    @torch.inference_mode()
    def outputs(self, images: train_data.Images) -> Tensor:
        """Return the logits of ``images`` without augmentation, float32 [n, classes] on the CPU."""
        self.model.eval()
        parts = [self.model(self._prepare(x, augment=False)) for x in images.images.split(1000)]
        return torch.cat(parts).float().cpu()

    @torch.inference_mode()
    def accuracy(self) -> float:
        """Return the share of the test set that is classified correctly."""
        self.model.eval()
        num_correct = 0
        test = self.data.test
        batches = zip(test.images.split(1000), test.labels.split(1000), strict=True)
        for images, labels in batches:
            predicted = self.model(self._prepare(images, augment=False)).argmax(1)
            num_correct += int((predicted == labels.to(self.args.device)).sum())
        return num_correct / len(test)

    def _prepare(self, images: Tensor, *, augment: bool) -> Tensor:
        images = images.to(self.args.device, non_blocking=True)
        if augment:
            images = train_data.shift_and_mirror(images, self.augmentation, padding=4)
        images = (images.float() - self.mean) / self.deviation
        return images.contiguous(memory_format=torch.channels_last)

    def _set_learning_rate(self, done: float) -> None:
        # Rise over the first fifth of training, then fall to zero.
        share = min(done / 0.2, (1 - done) / 0.8)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * share

    def _now(self) -> float:
        if self.args.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def pruned_steps(num_samples: int, args: argparse.Namespace) -> int:
    """Return the number of steps of a run that prunes by scores, from the second epoch on."""
    policy = dynloader.UCB(keep=args.keep, every=args.every)
    kept = (policy.num_kept(num_samples, epoch) for epoch in range(args.epochs))
    return sum(max(1, num_samples // args.batch_size) for num_samples in kept)


def shorter_epochs(num_samples: int, args: argparse.Namespace) -> int:
    """Return the number of full epochs that contain :func:`pruned_steps`, rounded up."""
    steps_of_all = max(1, num_samples // args.batch_size)
    return math.ceil(pruned_steps(num_samples, args) / steps_of_all)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", default="digits", help="digits, cifar10, cifar100, mnist, ..., or a folder")
    add("--name", help="name of the data in the report; default: --data, or the folder's name")
    add("--root", help="folder of torchvision's datasets")
    add(
        "--policy",
        default=DEFAULT_METHODS,
        help=f"methods, separated by commas, among {', '.join(METHODS)}",
    )
    add("--keep", type=float, default=0.5, help="fraction of the samples to keep, in (0, 1]")
    add("--every", type=int, help="epochs between selections; default: a twentieth of --epochs")
    add("--epochs", type=int, default=40)
    add("--seeds", type=int, default=5, help="number of runs of each method")
    add("--model", choices=MODELS, default="cnn")
    add("--batch-size", type=int, default=64)
    add("--lr", type=float, help="peak learning rate; default: 0.02 for digits, else 0.1")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: the GPU if there is one")
    add("--workers", type=int, default=0, help="number of worker processes")
    add("--threads", type=int, help="number of threads for computation")
    add("--eval-every", type=int, default=1, help="epochs between evaluations on the test set")
    add("--out", type=Path, help="folder for the results; default: runs/ and the data's name")
    add("--quick", action="store_true", help="4 epochs, 1 seed: a smoke test, not a comparison")
    args = parser.parse_args(arguments)
    if args.quick:
        args.epochs, args.seeds = 4, 1
    args.methods = [name.strip() for name in args.policy.split(",") if name.strip()]
    for name in args.methods:
        if name not in METHODS:
            parser.error(f"--policy must be among {', '.join(METHODS)}, got {name!r}")
    if not args.methods:
        parser.error("--policy must name a method, got none")
    if not 0 < args.keep <= 1:
        parser.error(f"--keep must be in (0, 1], got {args.keep}")
    for name in ("epochs", "seeds", "batch_size", "eval_every"):
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option} must be at least 1, got {getattr(args, name)}")
    if args.lr is None:
        args.lr = 0.02 if args.data == "digits" else 0.1
    if args.every is None:
        args.every = max(1, args.epochs // 20)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device must be cpu without a GPU, got {args.device}")
    return args


def warm_up(data: train_data.Data, args: argparse.Namespace) -> None:
    """Train briefly, so that libraries load and choose their kernels before anything is timed."""
    subset = train_data.Images(data.train.images[:512], data.train.labels[:512])
    small = train_data.Data(data.name, subset, subset, data.num_classes, data.augment)
    brief = argparse.Namespace(**{**vars(args), "epochs": 2, "workers": 0})
    with tqdm(disable=True) as silent:
        for name in ("full", "random"):
            Trainer(small, METHODS[name], 0, brief).run(silent)


def main() -> None:
    """Train all methods, and report."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        data = train_data.load(args.data, args.root)
    except ImportError as error:
        raise SystemExit(f"--data {args.data} needs {error.name}: {INSTALL}") from None
    name = args.name or data.name
    out = args.out or Path("runs") / name.replace(" ", "-")
    warm_up(data, args)
    args.log = out / "runs"
    try:
        empty(args.log)
    except FileExistsError as error:
        raise SystemExit(f"--out must not hold other runs, got {error}") from None
    runs = []
    jobs = [(METHODS[name], seed) for seed in range(args.seeds) for name in args.methods]
    trainers = (Trainer(data, method, seed, args) for method, seed in jobs)
    total = sum(
        shorter_epochs(len(data.train), args) if method.is_shorter else args.epochs
        for method, _ in jobs
    )
    with tqdm(total=total, unit="epoch", dynamic_ncols=True) as progress:
        for trainer in trainers:
            progress.set_description(f"{trainer.method.name}, seed {trainer.seed}")
            runs.append(trainer.run(progress))
            progress.set_postfix_str(f"last accuracy {100 * runs[-1]['accuracy']:.2f} %")
    result: dict[str, Any] = {
        **machine.describe(),
        "data": {
            "name": name,
            "train": len(data.train),
            "test": len(data.test),
            "classes": data.num_classes,
        },
        # Paths of this machine are of no use elsewhere.
        "arguments": {
            k: v for k, v in vars(args).items() if k not in ("data", "root", "out", "log")
        },
        "summary": train_report.summarize(runs),
        "runs": runs,
    }
    parameters = sum(p.numel() for p in trainer.model.parameters())
    title = (
        f"{name}: {len(data.train):,} training and {len(data.test):,} test images, "
        f"{args.model}, {args.epochs} epochs, keep {args.keep}"
    )
    found = result["machine"]
    device = found["gpu"] if args.device.startswith("cuda") else found["cpu"]
    seeds = "one seed" if args.seeds == 1 else f"{args.seeds} seeds, mean ± standard deviation"
    every = "every epoch" if args.every == 1 else f"every {args.every} epochs"
    foot = (
        f"{seeds}; a network of {parameters:,} parameters; "
        f"selection {every} (InfoBatch: every epoch); "
        f"{device}, threads: {found['threads']}, torch {torch.__version__}, "
        f"commit {(result['commit']['hash'] or 'unknown')[:10]}"
    )
    print(f"\n{train_report.write(out, result, title, foot)}")
    write_report([args.log], out, title=title)
    names = ("table.md", "accuracy.png", "results.json", "report.html")
    print("\n".join(f"{out / name}" for name in names))


if __name__ == "__main__":
    main()
