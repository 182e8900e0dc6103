"""Scores of a batch, of a history and of a dataset, compared with examples computed by hand."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, RandomSampler, TensorDataset
from torch.utils.data import DataLoader as TorchDataLoader

from dynloader import UCB, DataLoader, Full, ScoreTable, scores

# Two classes, with probabilities (3/4, 1/4), (1/2, 1/2) and (1/4, 3/4).
LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0], [0.0, math.log(3.0)]])
LABELS = torch.tensor([0, 1, 0])


def test_by_hand() -> None:
    wanted = {
        "cross_entropy": [-math.log(0.75), math.log(2), -math.log(0.25)],
        "el2n": [0.25 * math.sqrt(2), 0.5 * math.sqrt(2), 0.75 * math.sqrt(2)],
        "margin": [0.5, 0.0, -0.5],
        "confidence": [0.75, 0.5, 0.25],
        "entropy": [
            -0.75 * math.log(0.75) - 0.25 * math.log(0.25),
            math.log(2),
            -0.75 * math.log(0.75) - 0.25 * math.log(0.25),
        ],
    }
    assert set(wanted) == set(scores.SCORES)
    for name, values in wanted.items():
        found = scores.SCORES[name](LOGITS.requires_grad_(), LABELS)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        assert found.tolist() == pytest.approx(values, rel=1e-6, abs=1e-7), name
        half = scores.SCORES[name](LOGITS.half(), LABELS)
        assert half.dtype == torch.float32
        assert half.tolist() == pytest.approx(values, rel=1e-2, abs=1e-3), name


def test_three_classes_margin() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log()
    found = scores.margin(logits, torch.tensor([0, 2]))
    assert found.tolist() == pytest.approx([0.2, -0.3])


def gradient_norms(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[float]:
    """Return the gradient norm of each sample, from a backward pass of its own."""
    found = []
    for one, label in zip(inputs, labels, strict=True):
        loss = nn.functional.cross_entropy(model(one.unsqueeze(0)), label.unsqueeze(0))
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters)
        found.append(math.sqrt(sum(float(g.square().sum()) for g in gradients)))
    return found


@pytest.mark.parametrize("bias", [True, False])
def test_grand_of_the_last_layer_is_its_gradient(bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, bias=bias)
    features, labels = torch.randn(7, 5), torch.randint(3, (7,))
    found = scores.grand_last_layer(layer(features), labels, features, bias=bias)
    assert found.tolist() == pytest.approx(gradient_norms(layer, features, labels), rel=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_grand_is_the_gradient_of_each_sample(chunk_size: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    )
    model[0].weight.requires_grad_(False)
    inputs, labels = torch.randn(7, 1, 6, 6), torch.randint(4, (7,))
    model(inputs)
    model.train()
    found = scores.grand(model, inputs, labels, chunk_size=chunk_size)
    assert model.training
    assert model[1].training
    model.eval()
    assert found.tolist() == pytest.approx(gradient_norms(model, inputs, labels), rel=1e-4)


def test_forgetting_events() -> None:
    # forgotten once; forgotten twice; never correct; always correct
    correct = torch.tensor(
        [[1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1]], dtype=torch.bool
    )
    wanted = [1.0, 2.0, math.inf, 0.0]
    assert scores.forgetting_events(correct).tolist() == wanted
    table = ScoreTable(4, "cpu")
    with pytest.raises(ValueError, match="must have been updated with correct="):
        scores.forgetting_events(table)
    for row in correct:
        table.update(torch.arange(4), torch.ones(4), correct=row)
    assert scores.forgetting_events(table).tolist() == wanted


def test_windows_of_confidences() -> None:
    confidences = torch.tensor([[0.0, 0.5], [1.0, 0.5], [0.0, 0.5]])
    # Windows of two: deviations of sqrt(1/2) around 1/2, and of zero around 1/2.
    assert scores.dynamic_uncertainty(confidences, 2).tolist() == pytest.approx([0.5**0.5, 0.0])
    assert scores.dual(confidences, 2).tolist() == pytest.approx([0.5**0.5 / 2, 0.0])
    # One window of three, with mean 1/3.
    assert scores.dual(confidences, 3).tolist() == pytest.approx([(1 / 3) ** 0.5 * 2 / 3, 0.0])
    with pytest.raises(ValueError, match=r"window must be in \[2, 4\), got 4"):
        scores.dual(confidences, 4)


def test_forgetting_events_of_a_training() -> None:
    """A sample that is correct in one epoch and wrong in the next was forgotten once."""
    _, data = made(4)
    policy = Full()
    loader = DataLoader(data, 2, policy=policy, table=ScoreTable(4, "cpu"), return_index=True)
    history = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0]]).bool()
    for right in history:
        for *_, index in loader:
            loader.update(torch.ones(len(index)), correct=right[index])
    found = scores.forgetting_events(loader.table)
    assert found.tolist() == [1.0, 0.0, math.inf, 1.0]
    assert torch.equal(found, scores.forgetting_events(history))
    assert loader.table.visits.tolist() == [3] * 4


def test_tdds() -> None:
    """Two windows of two divergences each, for a sample that changes and one that does not."""
    moving = [[0.5, 0.5], [0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]
    probabilities = torch.tensor([[row, [0.9, 0.1]] for row in moving])

    def divergence(new: list[float], old: list[float]) -> float:
        return sum(p * math.log(p / q) for p, q in zip(new, old, strict=True) if p)

    first, second, third = (divergence(moving[i + 1], moving[i]) for i in range(3))
    # Each of two numbers deviates from their mean by half of their difference.
    older, newer = abs(first - second) / math.sqrt(2), abs(second - third) / math.sqrt(2)
    found = scores.tdds(probabilities, window=2, decay=0.8)
    assert found.tolist() == pytest.approx([0.8 * newer + 0.16 * older, 0.0], rel=1e-5)
    only = scores.tdds(probabilities, window=2, decay=1.0)
    assert only.tolist() == pytest.approx([newer, 0.0], rel=1e-5)
    assert scores.tdds(probabilities[[3, 0, 3, 0]], window=2).isfinite().all()


def test_tdds_refused() -> None:
    for shape, options, message in (
        ((3, 4), {}, r"probabilities must have shape \[epochs, n, classes\], got \[3, 4\]"),
        ((3, 4, 2), {"window": 3}, r"window must be in \[2, 3\), got 3"),
        ((4, 4, 2), {"window": 2, "decay": 0.0}, r"decay must be in \(0, 1\], got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            scores.tdds(torch.full(shape, 0.5), **options)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(3), LABELS, r"logits must be float \[b, classes\]"),
        (torch.zeros(3, 2, dtype=torch.int64), LABELS, r"got torch.int64 \[3, 2\]"),
        (LOGITS, LABELS[:2], r"labels must have shape \[3\], got \[2\]"),
    ],
)
def test_refused(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores.el2n(logits, labels)


# --- a pass over a dataset -----------------------------------------------------------------------


def made(n: int = 50) -> tuple[nn.Module, TensorDataset]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    return model, TensorDataset(torch.randn(n, 4), torch.randint(3, (n,)))


@pytest.mark.parametrize("score", ["cross_entropy", "el2n", scores.margin])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pass_scores_every_sample(score: Any, shuffle: bool) -> None:
    model, data = made()
    loader = DataLoader(data, 8, shuffle=shuffle, return_index=True)
    model.train()
    found = scores.scoring_pass(model, loader, score)
    assert model.training
    assert model[1].training
    model.eval()
    function = scores.SCORES[score] if isinstance(score, str) else score
    wanted = function(model(data.tensors[0]), data.tensors[1])
    assert torch.allclose(found.scores, wanted)
    assert found.num_forward == 50
    assert found.seconds > 0
    assert not found.scores.requires_grad
    if not shuffle:
        stock = scores.scoring_pass(model, TorchDataLoader(data, 8), score)
        assert torch.equal(stock.scores, found.scores)


def test_batches_that_may_come_in_another_order_are_refused() -> None:
    model, data = made()
    shuffled = BatchSampler(RandomSampler(data), 8, drop_last=False)
    for loader in (
        TorchDataLoader(data, batch_sampler=shuffled),
        DataLoader(data, batch_sampler=shuffled),
        TorchDataLoader(data, 8, in_order=False),
    ):
        with pytest.raises(ValueError, match="yield the index of each sample"):
            scores.scoring_pass(model, loader)
    indexed = DataLoader(data, batch_sampler=shuffled, return_index=True)
    model.eval()
    wanted = scores.cross_entropy(model(data.tensors[0]), data.tensors[1])
    assert torch.allclose(scores.scoring_pass(model, indexed).scores, wanted)


def test_a_pass_by_gradients() -> None:
    model, data = made()
    inputs, labels = data.tensors
    loader = TorchDataLoader(data, 8)
    found = scores.scoring_pass(model, loader, "grand_last_layer").scores
    wanted = scores.grand(model[2], model[:2].eval()(inputs).detach(), labels)
    assert torch.allclose(found, wanted, rtol=1e-4)
    exact = scores.scoring_pass(model, loader, "grand").scores
    assert torch.allclose(exact, scores.grand(model, inputs, labels), rtol=1e-4)
    with pytest.raises(ValueError, match=r"must have an nn.Linear for grand_last_layer, got none"):
        scores.scoring_pass(nn.Conv1d(1, 1, 1), loader, "grand_last_layer")
    headless = nn.Sequential(model, nn.Conv1d(1, 4, 1), nn.Flatten())
    with pytest.raises(ValueError, match="gives 3 values for 12 classes"):
        scores.scoring_pass(headless, TorchDataLoader(data, 8), "grand_last_layer",
                            prepare=lambda x: x.unsqueeze(1))  # fmt: skip


class Dict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Any:
        return {"logits": self.layer(inputs)}


def test_passes_that_cannot_score() -> None:
    model, data = made()
    with pytest.raises(TypeError, match="logits must be a tensor, got dict"):
        scores.scoring_pass(Dict(), TorchDataLoader(data, 8))
    found = scores.scoring_pass(
        Dict(), TorchDataLoader(data, 8), lambda out, labels: scores.el2n(out["logits"], labels)
    )
    assert len(found.scores) == 50
    with pytest.raises(ValueError, match="device must be given for a model without parameters"):
        scores.scoring_pass(nn.Identity(), TorchDataLoader(data, 8))
    with pytest.raises(ValueError, match=r"labels \[b, ...\], got a number"):
        scores.scoring_pass(model, TorchDataLoader(data, batch_size=None))
    with pytest.raises(TypeError, match=r"num_samples must be given if loader.dataset"):
        scores.scoring_pass(model, [next(iter(TorchDataLoader(data, 8)))])


def test_sequences_are_scored_by_a_function() -> None:
    words, classes = torch.arange(30).reshape(6, 5) % 7, 7
    model = nn.Embedding(classes, classes)  # logits of the next word
    data = TensorDataset(words[:, :-1], words[:, 1:])

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)

    found = scores.scoring_pass(model, TorchDataLoader(data, 4), loss).scores
    rows = model.weight.detach().log_softmax(1)
    wanted = [-rows[row[:-1], row[1:]].mean().item() for row in words]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match=r"one number per sample, \[4\], got \[4, 4\]"):
        scores.scoring_pass(model, TorchDataLoader(data, 4), lambda logits, labels: logits[..., 0])
    number: Any = lambda logits, labels: float(loss(logits, labels).mean())  # noqa: E731
    with pytest.raises(TypeError, match="score must return a tensor, got float"):
        scores.scoring_pass(model, TorchDataLoader(data, 4), number)
    with pytest.raises(ValueError, match=r"logits must be float \[b, classes\], got .*\[4, 4, 7\]"):
        scores.scoring_pass(model, TorchDataLoader(data, 4))
    with pytest.raises(ValueError, match=r"labels must have shape \[4\], got \[4, 4\]"):
        scores.scoring_pass(model, TorchDataLoader(data, 4), "grand")


def test_labels_out_of_range() -> None:
    logits = torch.zeros(2, 3)
    for name in ("cross_entropy", "el2n", "margin", "confidence"):
        for bad in (-1, 3, -100):
            with pytest.raises(IndexError, match=r"labels must be in \[0, 3\)"):
                scores.SCORES[name](logits, torch.tensor([0, bad]))
        with pytest.raises(TypeError, match=r"labels must be integers, got torch.float32"):
            scores.SCORES[name](logits, torch.zeros(2))


def test_masked_classes_and_few() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    assert scores.entropy(logits).tolist() == pytest.approx([math.log(2)])
    with pytest.raises(ValueError, match="two classes or more, got 1"):
        scores.margin(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))
    assert scores.grand(nn.Linear(4, 3), torch.zeros(0, 4), torch.zeros(0).long()).shape == (0,)


class Scaled(nn.Module):
    """A model whose only parameter is a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * inputs


def test_grand_of_a_scalar_parameter() -> None:
    # The derivative of the loss by the scale is the sum of (p - y) x, with p = (3/4, 1/4).
    inputs = torch.tensor([[math.log(3.0) / 2, 0.0]])
    found = scores.grand(Scaled(), inputs, torch.tensor([1]))
    assert found.tolist() == pytest.approx([0.75 * math.log(3.0) / 2])


def test_inputs_are_prepared() -> None:
    model, data = made()
    found = scores.scoring_pass(model, TorchDataLoader(data, 8), prepare=lambda x: 0 * x)
    model.eval()
    wanted = scores.cross_entropy(model(0 * data.tensors[0]), data.tensors[1])
    assert torch.allclose(found.scores, wanted)


def test_a_pass_that_is_not_over_all_is_refused() -> None:
    model, data = made()
    with pytest.raises(ValueError, match="yield the index of each sample"):
        scores.scoring_pass(model, TorchDataLoader(data, 8, shuffle=True))
    with pytest.raises(ValueError, match="all of 50 samples, got none of 2 of them"):
        scores.scoring_pass(model, TorchDataLoader(data, 8, drop_last=True))
    with pytest.raises(ValueError, match="all of 60 samples"):
        scores.scoring_pass(model, TorchDataLoader(data, 8), num_samples=60)
    with pytest.raises(ValueError, match=r"score must be one of cross_entropy, .*got 'losses'"):
        scores.scoring_pass(model, TorchDataLoader(data, 8), "losses")
    with pytest.raises(ValueError, match=r"one number per sample, \[8\], got \[8, 3\]"):
        scores.scoring_pass(model, TorchDataLoader(data, 8), lambda logits, labels: logits)
    with pytest.raises(ValueError, match=r"must yield .*got Tensor"):
        scores.scoring_pass(model, TorchDataLoader(torch.zeros(4, 4), 2))
    assert model.training


@pytest.mark.parametrize("num_labels", [1, 49, 50])
def test_indices_that_do_not_fit_the_labels_are_refused(num_labels: int) -> None:
    """One score for many indices would otherwise be that of all of them."""
    model, data = made()
    inputs, labels = (part[:num_labels] for part in data.tensors)
    index = torch.arange(50)[: 50 if num_labels < 50 else 1]
    message = rf"as many indices as labels, \[{num_labels}\], got \[{len(index)}\]"
    with pytest.raises(ValueError, match=message):
        scores.scoring_pass(model, [(inputs, labels, index)], num_samples=50)
    assert model.training


def test_the_scores_choose_a_static_subset() -> None:
    import dynloader

    model, data = made()
    found = scores.scoring_pass(model, TorchDataLoader(data, 8), "el2n")
    policy = dynloader.Static(scores=found.scores, keep=0.2)
    loader = DataLoader(data, 5, policy=policy, return_index=True)
    fed = torch.cat([index for *_, index in loader])
    assert sorted(fed.tolist()) == sorted(found.scores.topk(10).indices.tolist())


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_saved_and_loaded(ending: str, tmp_path: Path) -> None:
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"scores.{ending}"
    values = torch.tensor([1.5, -math.inf, math.inf, 0.0])
    scores.save(path, values, method="el2n", epochs=2)
    assert torch.equal(scores.load(path), values)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    whole = path.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="must hold"):
            scores.load(path)


def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other names than 'file'"):
        scores.save(tmp_path / "scores.npz", torch.zeros(3), file="x")
    with pytest.raises(ValueError, match="must end in"):
        scores.save(tmp_path / "scores.txt", torch.zeros(3))
    assert not list(tmp_path.iterdir())
    np.save(tmp_path / "plain.npy", np.zeros(3, np.float32))
    (tmp_path / "plain.npy").rename(tmp_path / "plain.npz")
    with pytest.raises(ValueError, match="must hold an array named scores"):
        scores.load(tmp_path / "plain.npz")


def test_files_that_hold_no_scores(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in .npz or .safetensors, got '.*scores.pt'"):
        scores.save(tmp_path / "scores.pt", torch.zeros(3))
    with pytest.raises(ValueError, match=r"scores must have shape \[n\], got \[3, 1\]"):
        scores.save(tmp_path / "scores.npz", torch.zeros(3, 1))
    np.savez(tmp_path / "other.npz", losses=np.zeros(3))
    with pytest.raises(ValueError, match="must hold an array named scores"):
        scores.load(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", scores=np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"must be float32 \[n\], got torch.float64 \[3, 2\]"):
        scores.load(tmp_path / "other.npz")


def damages(whole: bytes) -> Iterator[bytes]:
    """Yield the file with a byte changed, removed or inserted, and cut off."""
    for place, byte in enumerate(whole):
        yield whole[:place] + bytes([byte ^ (0x01, 0x08, 0xFF)[place % 3]]) + whole[place + 1 :]
    for place in range(0, len(whole), 7):
        yield whole[:place]
        yield whole[:place] + whole[place + 1 :]
        yield whole[:place] + b"\0" + whole[place:]


@pytest.mark.parametrize("kind", ["npz", "npz compressed", "safetensors"])
def test_a_damaged_file(kind: str, tmp_path: Path) -> None:
    values = torch.tensor([1.5, -math.inf, math.inf, 0.0])
    path = tmp_path / f"scores.{kind.split()[0]}"
    if kind == "npz compressed":
        np.savez_compressed(path, scores=values.numpy(), method=np.array("el2n"))
    else:
        if kind == "safetensors":
            pytest.importorskip("safetensors")
        scores.save(path, values, method="el2n")
    whole, num_refused = path.read_bytes(), 0
    for damaged in damages(whole):
        path.write_bytes(damaged)
        try:
            found = scores.load(path)
        except ValueError:
            num_refused += 1
            continue
        # Checksums do not cover times and names, nor the values of safetensors.
        assert found.dtype == torch.float32
        assert found.ndim == 1
        assert kind == "safetensors" or torch.equal(found, values)
    assert num_refused > len(whole) / 2


def test_other_files_without_scores(tmp_path: Path) -> None:
    """The libraries raise NotImplementedError, zlib.error and OSError for some of these."""
    pytest.importorskip("safetensors")
    stored = io.BytesIO()
    np.save(stored, np.zeros(3, np.float32))
    entry, deflated = stored.getvalue(), zlib.compress(stored.getvalue())
    archives = {}
    for name, method, patched in (
        ("unknown method", 0, 99),
        ("not deflated", 0, zipfile.ZIP_DEFLATED),
        ("not lzma", 0, zipfile.ZIP_LZMA),
        ("not bzip2", 0, zipfile.ZIP_BZIP2),
    ):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("scores.npy", entry)
        raw = bytearray(file.getvalue())
        raw[8:10] = patched.to_bytes(2, "little")
        central = raw.index(b"PK\1\2")
        raw[central + 10 : central + 12] = patched.to_bytes(2, "little")
        archives[name] = bytes(raw)
    encrypted = bytearray(archives["unknown method"])
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
    archives["encrypted"] = bytes(encrypted)
    for name, content in (
        ("an object", np.array([{}, None, 1.0], object)),
        ("text", np.array("el2n")),
        ("big-endian", np.zeros(3, ">f4")),
    ):
        file = io.BytesIO()
        np.savez(file, scores=content)
        archives[name] = file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        header = entry[10:128].replace(b"(3,)", b"(9999999999999,)")[: 128 - 10]
        archive.writestr("scores.npy", entry[:10] + header)
    archives["a length beyond all memory"] = file.getvalue()
    archives["zlib"], archives["nothing"], archives["text file"] = deflated, b"", b"1.5\n2.5\n"
    for name, content in archives.items():
        for ending in ("npz", "safetensors"):
            path = tmp_path / f"{name}.{ending}"
            path.write_bytes(content)
            with pytest.raises(ValueError, match=f"{name}.{ending} must") as caught:
                scores.load(path)
            assert caught.value.__cause__ is not None


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_a_file_that_cannot_be_opened(ending: str, tmp_path: Path) -> None:
    if ending == "safetensors":
        pytest.importorskip("safetensors")
    path = tmp_path / f"scores.{ending}"
    with pytest.raises(FileNotFoundError, match="scores"):
        scores.load(path)
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        scores.load(path)


def test_a_pass_with_a_policy_is_refused() -> None:
    model, data = made()
    loader = DataLoader(data, 8, policy=UCB(keep=0.5, every=1, warmup=0), return_index=True)
    for batch in loader:
        loader.update(torch.ones(len(batch[0])), batch[2])
    with pytest.raises(ValueError, match="score without a policy"):
        scores.scoring_pass(model, loader)
