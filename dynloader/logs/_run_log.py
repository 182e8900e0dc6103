"""Logs a training run to a folder that ``python -m dynloader report`` reads."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynloader._checks import as_labels
from dynloader.logs._files import FIGURES, SCORES, VERSION, new_file, read_lines, read_samples

_NUM_IMAGES = 24


class RunLog:
    """The log of one training run: a folder with a line per epoch and arrays over the samples.

    ============ =========================================================================
    run.json     metadata: name, seed, policy, number of samples, class names
    epochs.jsonl the statistics of each epoch, one JSON object per line
    samples.npz  arrays with one entry per sample, as of the last epoch
    images/      images of the samples that the report shows
    ============ =========================================================================

    Each file is written under a temporary name and renamed once it is complete, so a killed process
    leaves no damaged file.

    Args:
        folder: the folder to write to; created if it does not exist. It must not hold a run unless
            ``first_epoch`` is given. None: write nothing.
        name: name of the method; runs with the same name are treated as different seeds of it.
            None: the folder's name.
        seed: the seed of this run.
        labels: the class of each sample, integers [n].
        class_names: names of the classes.
        about: additional entries for ``run.json``.
        first_epoch: continue the run in ``folder``, if there is one, from this epoch on. The first
            new line replaces its lines from this epoch on. A truncated last line and damaged
            arrays are dropped with a warning.

    Raises:
        TypeError: ``labels`` are not integers [n].
        ValueError: ``folder`` holds a run and ``first_epoch`` is None, a line of the run to
            continue is damaged, or ``folder`` is a file or has a folder in place of a file.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        name: str | None = None,
        seed: int = 0,
        labels: Tensor | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        about: Mapping[str, Any] | None = None,
        first_epoch: int | None = None,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.labels = None if labels is None else as_labels(labels)
        self.lines: list[dict[str, Any]] = []
        # Writes the line of the last finished epoch if it is still pending.
        self.settle: Callable[[], Any] = lambda: None
        self.samples: dict[str, np.ndarray[Any, Any]] = {}
        # Lines of the run to continue that the first new line replaces, its arrays, and whether its
        # last line is truncated.
        self._replaced: list[dict[str, Any]] = []
        self._found: dict[str, np.ndarray[Any, Any]] | None = None
        self._is_cut = False
        if self.folder is not None:
            _check_paths(self.folder)
        self._on_disk = None if self.folder is None else _content(self.folder / "epochs.jsonl")
        if self.folder is not None and self._on_disk is not None:
            if first_epoch is None:
                raise ValueError(
                    f"folder must not hold a run yet, got {str(folder)!r}: use another folder, or "
                    "log_to(..., resume=True) to continue the run"
                )
            self._read(self.folder)
            self.resume_at(first_epoch)
            self._warn_of_another_run(self.folder, {"seed": seed, **(about or {})})
        elif self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.about = {
            "version": VERSION,
            "name": name or ("" if self.folder is None else self.folder.name),
            "seed": seed,
            "created": time.time(),
            "class_names": None if class_names is None else [str(each) for each in class_names],
            **(about or {}),
        }
        self._add_labels()
        self._save_about()

    def write(self, figures: Mapping[str, Any]) -> None:
        """Add the statistics of an epoch, including "epoch"."""
        self.lines.append(dict(figures))
        replaced, self._replaced = self._replaced, []
        try:
            self._save_lines()
        except BaseException:
            self.lines.pop()
            self._replaced = replaced
            raise
        self._found = None

    def add(self, **metrics: float) -> None:
        """Add metrics, such as ``accuracy=0.93``, to the most recently finished epoch.

        Does nothing in processes that write no log (all but rank 0).

        Raises:
            RuntimeError: no epoch has finished yet.
            TypeError: a metric is not a number.
            ValueError: a name is already used by one of the log's own statistics.
        """
        taken = [name for name in metrics if name in FIGURES or name in SCORES]
        if taken:
            raise ValueError(
                f"metrics must not have the name of a built-in statistic, got {taken[0]!r}"
            )
        values = {name: _as_number(name, value) for name, value in metrics.items()}
        self.settle()
        if self.folder is None:
            return
        if not self.lines:
            raise RuntimeError("add needs a finished epoch, got none")
        self.lines[-1] |= values
        self._save_lines()

    def write_samples(self, **arrays: Tensor) -> None:
        """Replace the given arrays, which have one entry per sample."""
        # Copies, since the table keeps changing.
        self.samples |= {
            name: array.detach().cpu().numpy().copy() for name, array in arrays.items()
        }
        if self.folder is None:
            return
        with new_file(self.folder / "samples.npz") as file:
            np.savez(file, **self.samples)  # type: ignore[arg-type]

    def write_images(self, dataset: Any) -> None:
        """Save the images of the samples that the report shows.

        Args:
            dataset: a map-style dataset. Each sample must be an image, or a tuple, list or mapping
                whose first element is one. An image is a PIL image, or a tensor or array [height,
                width], [channels, height, width] or [height, width, channels] with 1 or 3 channels,
                either uint8 or floating point in [0, 1]; other floating-point ranges are scaled to
                [0, 1]. Samples of any other kind are skipped; a warning says if all were.
        """
        self.settle()
        if self.folder is None:
            return
        chosen = notable(self.samples)
        folder = self.folder / "images"
        indices = dict.fromkeys(index for group in chosen.values() for index in group)
        num_written = 0
        for index in indices:
            image = _as_image(dataset[index])
            if image is not None:
                folder.mkdir(exist_ok=True)
                with new_file(folder / f"{index}.png") as file:
                    image.save(file, "png")
                num_written += 1
        if indices and not num_written:
            warnings.warn(
                f"no image was written: dataset[{next(iter(indices))}] is none, nor are the others",
                stacklevel=2,
            )

    def resume_at(self, epoch: int) -> None:
        """Continue the run that was in the folder from ``epoch`` on.

        Does nothing if there was no run, or once this log has written a line.
        """
        if self.folder is None or self._found is None:
            return
        lines = self.lines + self._replaced
        self.lines = [line for line in lines if (line.get("epoch") or 0) < epoch]
        self._replaced = [line for line in lines if (line.get("epoch") or 0) >= epoch]
        last_epoch = self.lines[-1].get("epoch") or 0 if self.lines else -1
        # If the run resumes at or before the epoch of the truncated line, nothing is lost: that
        # epoch is trained again.
        is_lost = self._is_cut and not self._replaced and last_epoch + 1 < epoch
        if is_lost:
            warnings.warn(
                f"the last line of {self.folder / 'epochs.jsonl'} is truncated: the run continues "
                "without it",
                stacklevel=5,
            )
        num_epochs = self._found.get("num_epochs", np.array(0))
        # If the arrays include epochs that will be replaced, count returns from here on.
        is_current = not num_epochs.ndim and num_epochs == len(self.lines) + is_lost
        self.samples = dict(self._found) if is_current else {}
        self._add_labels()

    def _read(self, folder: Path) -> None:
        try:
            self.lines, self._is_cut = read_lines(folder / "epochs.jsonl")
        except ValueError as error:
            raise ValueError(f"{folder} holds a run that cannot be resumed: {error}") from None
        self._found = {}
        if (folder / "samples.npz").exists():
            try:
                self._found = read_samples(folder / "samples.npz")
            except ValueError as error:
                warnings.warn(
                    f"{error}; it will be rewritten, and returns are counted from here on",
                    stacklevel=4,
                )

    def _warn_of_another_run(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Warn if the run in ``folder`` has other settings than this one."""
        try:
            found = json.loads((folder / "run.json").read_text())
        except (OSError, ValueError):
            return
        # As JSON, since that has no tuples.
        about = json.loads(json.dumps(about))
        for name in sorted(about):
            if isinstance(found, dict) and name in found and found[name] != about[name]:
                warnings.warn(
                    f"the run in {folder} is another one: its {name} is {found[name]!r}, not "
                    f"{about[name]!r}",
                    stacklevel=5,
                )
                return

    def _add_labels(self) -> None:
        if self.labels is not None:
            self.samples["label"] = self.labels.numpy()

    def _save_about(self) -> None:
        if self.folder is None:
            return
        with new_file(self.folder / "run.json") as file:
            file.write(f"{json.dumps(self.about, indent=1)}\n".encode())

    def _save_lines(self) -> None:
        if self.folder is None:
            return
        lines = self.lines + self._replaced
        text = "".join(f"{_line_of(line)}\n" for line in lines).encode()
        with new_file(self.folder / "epochs.jsonl") as file:
            file.write(text)
        self._on_disk = text

    def is_untouched(self) -> bool:
        """Return whether the lines on disk are as this log left them: no other log took over."""
        if self.folder is None:
            return True
        return self.folder.is_dir() and _content(self.folder / "epochs.jsonl") == self._on_disk


def notable(samples: Mapping[str, Any], count: int = _NUM_IMAGES) -> dict[str, list[int]]:
    """Return the indices of notable samples: hardest, never kept, most often returning.

    Args:
        samples: the arrays of a :class:`RunLog`, which have one entry per sample.
        count: maximum number of samples of each kind.
    """
    found: dict[str, list[int]] = {}
    if "score" in samples:
        # Samples whose loss diverged come first. Samples never seen have no score yet.
        scores, visits = np.asarray(samples["score"], float), samples.get("visits")
        is_seen = np.isfinite(scores) if visits is None else visits > 0
        seen = np.flatnonzero(is_seen)
        highest_first = np.where(np.isnan(scores[seen]), -np.inf, -scores[seen])
        order = seen[np.argsort(highest_first, kind="stable")]
        found["hardest"] = order[:count].tolist()
    if "kept" in samples and samples["kept"].any():
        found["never kept"] = np.flatnonzero(samples["kept"] == 0)[:count].tolist()
    if "returns" in samples and samples["returns"].any():
        order = np.argsort(-np.asarray(samples["returns"], np.int64), kind="stable")[:count]
        found["most often returning"] = [int(i) for i in order if samples["returns"][i] > 0]
    return found


def _check_paths(folder: Path) -> None:
    """Raise ValueError if ``folder`` is a file, or a file of the run is a folder."""
    for path in (folder, *folder.parents):
        if path.is_file():
            raise ValueError(f"folder must be a folder, got the file {str(path)!r}")
    for name in ("run.json", "epochs.jsonl", "samples.npz"):
        if (folder / name).is_dir():
            raise ValueError(f"{name} must be a file, got a folder: {str(folder / name)!r}")


def _content(path: Path) -> bytes | None:
    """Return the content of a file, or None if it does not exist."""
    return path.read_bytes() if path.exists() else None


def _as_number(name: str, value: Any) -> float:
    """Return a metric as a float, or raise TypeError."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def _line_of(line: Mapping[str, Any]) -> str:
    """Return ``line`` as JSON, which has no NaN or infinity: non-finite values become null."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(plain, allow_nan=False)


def _as_image(sample: Any) -> Any:
    """Return a sample as a PIL image of at most 96 pixels per side, or None if it is not one."""
    from PIL import Image

    if isinstance(sample, Mapping):
        sample = tuple(sample.values())
    if isinstance(sample, (tuple, list)):
        sample = sample[0]
    if isinstance(sample, Image.Image):
        image = sample.convert("RGB")
    else:
        if not isinstance(sample, (Tensor, np.ndarray)) or sample.ndim not in (2, 3):
            return None
        pixels = torch.as_tensor(sample).detach().cpu()
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
            pixels = pixels.permute(1, 2, 0)
        if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
            return None
        if pixels.is_floating_point():
            low, high = float(pixels.min()), float(pixels.max())
            # Stretch normalized images to the visible range.
            if low < 0 or high > 1:
                pixels = (pixels - low) / max(high - low, 1e-12)
            pixels = (pixels * 255).round()
        image = Image.fromarray(pixels.to(torch.uint8).numpy().squeeze()).convert("RGB")
    image.thumbnail((96, 96))
    return image
