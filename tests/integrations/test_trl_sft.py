"""PruningTrainer with TRL's SFTTrainer, and with samples that are joined without padding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dynloader
from dynloader import Full, InfoBatch, Policy, RandomDynamic, select_tokens

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")
from dynloader.integrations._tokens import mean_over_tokens, of_samples  # noqa: E402
from dynloader.integrations.transformers import PruningTrainer  # noqa: E402

WORDS, N = 20, 24


class Recording(PruningTrainer):
    """Records the inputs and the loss of every batch."""

    batches: list[dict[str, Any]]

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        given = {name: value for name, value in inputs.items() if torch.is_tensor(value)}
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.__dict__.setdefault("batches", []).append({"loss": loss} | given)
        return loss


class PruningSFTTrainer(Recording, trl.SFTTrainer):  # type: ignore[misc, name-defined]
    pass


def tokenizer() -> Any:
    words = {f"w{i}": i for i in range(WORDS)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), eos_token="w1", pad_token="w2"
    )


def llama(seed: int = 2) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def rows(prompts: bool = False) -> Any:
    """Return sequences of 3 to 9 words, the first of which have no loss if ``prompts``."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for i in range(N):
        words = torch.randint(3, WORDS, (3 + i % 7,), generator=generator).tolist()
        labels = [-100 if prompts and j < i % 3 else word for j, word in enumerate(words)]
        made.append({"input_ids": words, "labels": labels})
    return datasets.Dataset.from_list(made)


KINDS: dict[str, dict[str, Any]] = {
    "padded": {},
    "prompts": {},
    "padding-free": {"padding_free": True, "max_length": None},
    "wrapped": {"packing": True, "packing_strategy": "wrapped", "max_length": 12},
    "packed": {"packing": True, "packing_strategy": "bfd", "max_length": 12},
    "dft": {"loss_type": "dft"},
    "batches of 1": {"per_device_train_batch_size": 1},
}


def trainer_of(folder: Path, kind: str, trainer: Any = PruningSFTTrainer, **given: Any) -> Any:
    options = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    options |= KINDS[kind] | given.pop("options", {})
    return trainer(
        given.pop("model", None) or llama(),
        trl.SFTConfig(str(folder), **options),
        train_dataset=rows(prompts=kind == "prompts"),
        processing_class=tokenizer(),
        **given,
    )


def lost(trainer: Any) -> list[dict[str, Any]]:
    names = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm", "learning_rate")
    return [
        {name: line[name] for name in names} for line in trainer.state.log_history if "loss" in line
    ]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_all_samples_train_as_without_pruning(kind: str, accumulated: int, tmp_path: Path) -> None:
    options = {
        "train_sampling_strategy": "sequential",
        "gradient_accumulation_steps": accumulated,
    }
    stock = trainer_of(tmp_path / "a", kind, trl.SFTTrainer, options=options)
    stock.train()
    ours = trainer_of(tmp_path / "b", kind, policy=Full(), options=options)
    ours.train()
    wanted = lost(stock)
    assert len(wanted) == len(lost(ours)) >= 4
    for line, other in zip(wanted, lost(ours), strict=True):
        assert other == pytest.approx(line, rel=2e-3, abs=2e-4)  # the log is rounded
    for one, two in zip(stock.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_two_processes_train_as_without_pruning(tmp_path: Path) -> None:
    here = os.environ | {
        "PYTHONPATH": str(Path(dynloader.__file__).parent.parent),
        "HF_HUB_OFFLINE": "1",
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [sys.executable, *launcher, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=here,
        check=False,
    )
    written = tmp_path / "compared.json"
    assert written.exists(), result.stderr
    stock, ours = json.loads(written.read_text())
    assert len(stock) == len(ours) == 2
    for line, other in zip(stock, ours, strict=True):
        assert other == pytest.approx(line, rel=1e-4)


def compare(folder: Path) -> None:
    """Train with and without pruning, in each process, and write the logs of both."""
    rank = os.environ["RANK"]
    options = {
        "train_sampling_strategy": "sequential",
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "ddp_backend": "gloo",
    }
    stock = trainer_of(folder / f"a{rank}", "prompts", trl.SFTTrainer, options=dict(options))
    ours = trainer_of(folder / f"b{rank}", "prompts", policy=Full(), options=dict(options))
    for trainer in (stock, ours):
        trainer.train()
    if rank == "0":
        (folder / "compared.json").write_text(json.dumps([lost(stock), lost(ours)]))


def mean_alone(model: Any, row: dict[str, Any]) -> float:
    """Return the mean loss of a row's tokens, each of its sequences run by itself."""
    words, labels = (torch.tensor(row[name]) for name in ("input_ids", "labels"))
    total, count = 0.0, 0
    start = 0
    for size in row.get("seq_lengths") or [len(words)]:
        part = slice(start, start + size)
        logits = model(input_ids=words[part][None]).logits[0, :-1]
        wanted = labels[part][1:]
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        total, count = total + float(losses), count + int((wanted != -100).sum())
        start += size
    return total / max(1, count)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "batches of 1"])
def test_each_row_gets_its_own_loss(kind: str, tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, kind, policy=RandomDynamic(keep=0.5), options={"learning_rate": 0.0}
    )
    trainer.train()
    table, data = trainer.loader.table, trainer.train_dataset
    kept = table.visits.nonzero().view(-1).tolist()
    # The first epoch of RandomDynamic is pruned, too.
    assert len(data) // 2 <= len(kept) <= 2 * (len(data) // 2)
    with torch.no_grad():
        wanted = torch.tensor([mean_alone(trainer.model, data[i]) for i in kept])
    torch.testing.assert_close(table.last_loss[kept].cpu(), wanted, rtol=1e-4, atol=1e-5)
    assert len(set(wanted.tolist())) > len(kept) // 2


@pytest.mark.parametrize("kind", ["prompts", "packed", "wrapped"])
def test_all_samples_train_as_without_pruning_in_bf16(kind: str, tmp_path: Path) -> None:
    options = {
        "train_sampling_strategy": "sequential",
        "gradient_accumulation_steps": 2,
        "bf16": True,
    }
    stock = trainer_of(tmp_path / "a", kind, trl.SFTTrainer, options=options)
    stock.train()
    ours = trainer_of(tmp_path / "b", kind, policy=Full(), options=options)
    ours.train()
    assert len(lost(stock)) == len(lost(ours)) >= 4
    for line, other in zip(lost(stock), lost(ours), strict=True):
        assert other == pytest.approx(line, rel=2e-2, abs=2e-3)
    for one, two in zip(stock.model.parameters(), ours.model.parameters(), strict=True):
        assert two.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("way", ["bf16", "bfloat16 model"])
@pytest.mark.parametrize("tokens", [None, 0.5])
def test_losses_in_bf16_are_float32_of_bfloat16_logits(
    way: str, tokens: float | None, tmp_path: Path
) -> None:
    """With ``bf16=True``, the model runs under autocast; or its parameters are bfloat16."""
    model = llama() if way == "bf16" else llama().bfloat16()
    trainer = trainer_of(
        tmp_path,
        "prompts",
        policy=Full(),
        model=model,
        keep_tokens=tokens,
        options={"learning_rate": 0.0, "num_train_epochs": 1, "bf16": way == "bf16"},
    )
    trainer.train()
    found, rows = trainer.loader.table.last_loss.cpu(), 0
    assert found.dtype == torch.float32
    for batch in trainer.batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bf16"), torch.no_grad():
            output = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
        logits = output.logits[:, :-1].detach()
        assert torch.equal(logits, logits.bfloat16().to(logits.dtype))
        wanted = batch["labels"][:, 1:]
        losses = torch.nn.functional.cross_entropy(logits.float().mT, wanted, reduction="none")
        means = losses.sum(1) / (wanted != -100).sum(1).clamp(min=1)
        torch.testing.assert_close(found[batch["index"]], means, rtol=1e-6, atol=1e-7)
        rows += len(means)
    assert rows == N
    assert (found != found.bfloat16().float()).sum() > N // 2  # not rounded to bfloat16
    with torch.no_grad():  # and not those of a model in float32
        exact = torch.tensor([mean_alone(llama(), row) for row in trainer.train_dataset])
    assert (found - exact).abs().max() > 1e-4
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=2e-2)


def test_samples_joined_by_transformers(tmp_path: Path) -> None:
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        learning_rate=0.0,
        num_train_epochs=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    data = rows(prompts=True)
    trainer = PruningTrainer(
        llama(),
        arguments,
        train_dataset=data,
        data_collator=transformers.DataCollatorWithFlattening(),
        policy=Full(),
    )
    trainer.train()
    assert trainer.loader is not None
    with torch.no_grad():
        wanted = torch.tensor([mean_alone(trainer.model, row) for row in data])
    found = trainer.loader.table.last_loss.cpu()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "wanted"),
    [
        ([3, 2], [[1, 2], [3, 4]]),
        ([1, 4], [[0, 0, 0, 0], [1, 2, 3, 4]]),
        ([0, 2, 2], [[0, 0], [1, 0], [2, 3]]),
        (None, [[1, 2, 3, 4, 5]]),
    ],
)
def test_joined_samples_by_hand(lengths: list[int] | None, wanted: list[list[int]]) -> None:
    # Six tokens, the last of which is padding; the first has no loss.
    inputs = {"input_ids": torch.zeros(1, 6)}
    assert of_samples(torch.tensor([[1, 2, 3, 4, 5]]), lengths, inputs).tolist() == wanted


def losses_of(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the losses of a batch's labels, and which of them count."""
    words, wanted = batch["input_ids"], batch["labels"][:, 1:]
    with torch.no_grad():
        logits = model(input_ids=words, attention_mask=batch["attention_mask"]).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.mT, wanted, reduction="none")
    return losses, wanted != -100


def test_weights_of_samples_multiply_their_tokens(tmp_path: Path) -> None:
    policy: Policy = InfoBatch(anneal=None)
    trainer = trainer_of(tmp_path, "prompts", policy=policy, options={"learning_rate": 0.0})
    trainer.train()
    plan = trainer.loader._epochs.current.plan
    checked = 0
    for batch in trainer.batches[-len(trainer.loader) :]:
        weights = plan.weights_of(batch["index"])
        if weights is None:
            continue
        losses, counts = losses_of(trainer.model, batch)
        wanted = (losses * weights.unsqueeze(1)).sum() / counts.sum()
        torch.testing.assert_close(batch["loss"], wanted, rtol=1e-4, atol=1e-6)
        checked += int((weights > 1).any())
    assert checked > 0


@pytest.mark.parametrize("has_reference", [False, True])
@pytest.mark.parametrize("is_sft", [False, True])
def test_the_loss_of_selected_tokens(is_sft: bool, has_reference: bool, tmp_path: Path) -> None:
    reference = llama(seed=7) if has_reference else None
    given: dict[str, Any] = {"policy": Full(), "keep_tokens": 0.4, "reference_model": reference}
    options = {"learning_rate": 0.0, "num_train_epochs": 1}
    trainer = trainer_of(tmp_path, "prompts", **given, options=options)
    if not is_sft:
        trainer = Recording(
            trainer.model,
            trainer.args,
            train_dataset=trainer.train_dataset,
            data_collator=trainer.data_collator,
            **given,
        )
    trainer.train()
    assert len(trainer.batches) == N // 4
    for step, batch in enumerate(trainer.batches):
        losses, counts = losses_of(trainer.model, batch)
        easy = None if reference is None else losses_of(reference, batch)[0]
        chosen = select_tokens(losses, 0.4, mask=counts, reference=easy, seed=42, step=step)
        assert int(chosen.sum()) == int(0.4 * int(counts.sum()))
        torch.testing.assert_close(batch["loss"], losses[chosen].mean(), rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # the scores are those of all tokens
        wanted = torch.tensor([mean_alone(trainer.model, row) for row in trainer.train_dataset])
    found = trainer.loader.table.last_loss.cpu()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has_reference", [False, True])
def test_joined_samples_select_the_tokens_of_padded_ones(
    has_reference: bool, tmp_path: Path
) -> None:
    options = {"learning_rate": 0.0, "num_train_epochs": 1}
    found = []
    for kind in ("padded", "padding-free"):
        reference = llama(seed=7) if has_reference else None
        trainer = trainer_of(
            tmp_path / kind,
            kind,
            policy=Full(),
            keep_tokens=0.4,
            reference_model=reference,
            options=options,
        )
        trainer.train()
        found.append(trainer.batches)
    assert len(found[0]) == len(found[1]) == N // 4
    for padded, joined in zip(*found, strict=True):
        assert joined["input_ids"].shape[0] == 1 < padded["input_ids"].shape[0]
        assert torch.equal(joined["index"], padded["index"])
        torch.testing.assert_close(joined["loss"], padded["loss"], rtol=1e-4, atol=1e-6)


def test_a_mean_over_no_tokens_is_zero() -> None:
    losses = torch.ones(2, 3, requires_grad=True)
    mean_over_tokens(losses, torch.zeros(2, 3, dtype=torch.bool)).mean().backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [[0.0] * 3] * 2
    means = mean_over_tokens(losses, torch.tensor([[True, False, True], [False, False, True]]))
    assert means.tolist() == pytest.approx([2 * 2 / 3, 1 * 2 / 3])


def test_evaluation_is_that_of_sft_trainer(tmp_path: Path) -> None:
    options = {"num_train_epochs": 1, "learning_rate": 0.0, "per_device_eval_batch_size": 4}
    trainer = trainer_of(tmp_path / "a", "prompts", policy=Full(), keep_tokens=0.5, options=options)
    trainer.train()
    stock = trainer_of(tmp_path / "b", "prompts", trl.SFTTrainer, options=options)
    wanted, found = (each.evaluate(rows(prompts=True)) for each in (stock, trainer))
    for name in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert found[name] == pytest.approx(wanted[name])


def test_resumed_within_an_epoch(tmp_path: Path) -> None:
    given: dict[str, Any] = {"policy": RandomDynamic(keep=0.5, every=1), "keep_tokens": 0.5}
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3}
    whole = trainer_of(tmp_path / "a", "packed", **given, options=options)
    whole.train()
    rest = trainer_of(tmp_path / "b", "packed", **given, options=options)
    rest.train(str(tmp_path / "a" / "checkpoint-4"))
    assert len(rest.batches) == len(whole.batches) - 4
    for one, two in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"options": {"label_smoothing_factor": 0.1}}, ValueError, "label_smoothing_factor must"),
        ({"compute_loss_func": max}, ValueError, "compute_loss_func must be None"),
        ({"keep_tokens": 1.5}, ValueError, r"keep_tokens must be in \(0, 1\], got 1.5"),
        ({"reference_model": llama()}, ValueError, "keep_tokens must be given with a reference"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_refused(
    given: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        trainer_of(tmp_path, "padded", policy=Full(), **given)


def test_an_overridden_compute_loss_is_refused(tmp_path: Path) -> None:
    class Own(PruningSFTTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs)

    with pytest.raises(TypeError, match="compute_loss must not be overridden alone, got that of"):
        trainer_of(tmp_path, "padded", Own, policy=Full())


def test_a_loss_that_is_not_the_mean_over_tokens_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trl.SFTTrainer.compute_loss
    monkeypatch.setattr(
        trl.SFTTrainer, "compute_loss", lambda *args, **kwargs: 2 * real(*args, **kwargs)
    )
    trainer = trainer_of(tmp_path, "padded", policy=Full())
    with pytest.raises(RuntimeError, match="SFTTrainer must minimize the mean over tokens"):
        trainer.train()


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
