"""PruningTrainer minimizes the configured loss in the configured order, or raises an error."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, RandomSampler, SubsetRandomSampler

from dynloader import UCB, Full, RandomDynamic

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from dynloader.integrations._sample_losses import (  # noqa: E402
    LabelLosses,
    agrees,
    kind_of,
    label_losses,
)
from dynloader.integrations.transformers import PruningTrainer  # noqa: E402

N = 24
WORDS = 17
LENGTH = 9
_SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


class Rows(Dataset[dict[str, Tensor]]):
    """Sequences of words, with labels of the kind that the model needs."""

    def __init__(self, labels: str) -> None:
        generator = torch.Generator().manual_seed(1)
        self.words = torch.randint(1, WORDS, (N, LENGTH), generator=generator)
        numbers = torch.randn(N, 3, generator=generator)
        self.labels = {
            "class": numbers.argmax(1),
            "number": numbers[:, 0],
            "numbers": numbers,
            "many": (numbers > 0).float(),
            "words": self.words.clone(),
            "tokens": self.words % 3,
        }[labels]
        if labels in ("words", "tokens"):
            for i in range(N):  # samples differ in the number of labels
                self.labels[i, LENGTH - i % 5 :] = -100
                self.labels[i, : i % 3] = -100

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[index], "labels": self.labels[index]}


def bert(head: str, **options: Any) -> Any:
    torch.manual_seed(2)
    return getattr(transformers, f"Bert{head}")(transformers.BertConfig(**_SMALL | options))


def gpt2() -> Any:
    torch.manual_seed(2)
    small = {"vocab_size": WORDS, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**small, **no_dropout, bos_token_id=0, eos_token_id=0)
    )


def llama() -> Any:
    torch.manual_seed(2)
    small = {name: value for name, value in _SMALL.items() if "dropout" not in name}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**small, num_key_value_heads=2, bos_token_id=0, eos_token_id=0)
    )


def t5() -> Any:
    torch.manual_seed(2)
    small = {"vocab_size": WORDS, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            **small, num_layers=1, dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0
        )
    )


class Own(nn.Module):
    """A model that is not from transformers, and returns a dictionary or a tuple."""

    def __init__(self, weight: Tensor | None = None, returns: type = dict) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.linear = nn.Linear(LENGTH, 3)
        self.weight = weight
        self.returns = returns

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        logits = self.linear(input_ids.float() / WORDS)
        loss = nn.functional.cross_entropy(logits, labels, self.weight)
        return (loss, logits) if self.returns is tuple else {"loss": loss, "logits": logits}


MODELS: dict[str, tuple[Any, str]] = {
    "class": (lambda: bert("ForSequenceClassification", num_labels=3), "class"),
    "number": (lambda: bert("ForSequenceClassification", num_labels=1), "number"),
    "numbers": (
        lambda: bert("ForSequenceClassification", num_labels=3, problem_type="regression"),
        "numbers",
    ),
    "many": (lambda: bert("ForSequenceClassification", num_labels=3), "many"),
    "masked": (lambda: bert("ForMaskedLM"), "words"),
    "tokens": (lambda: bert("ForTokenClassification", num_labels=3), "tokens"),
    "gpt2": (gpt2, "words"),
    "llama": (llama, "words"),
    "t5": (t5, "words"),
    "own": (Own, "class"),
    "own tuple": (lambda: Own(returns=tuple), "class"),
}


def make(
    folder: Path,
    kind: str = "own",
    trainer: Any = PruningTrainer,
    model: Any = None,
    dataset: Any = None,
    given: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Return a trainer for a model; ``given`` are its arguments, ``options`` TrainingArguments."""
    make_model, labels = MODELS[kind]
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
    }
    policy = {} if trainer is transformers.Trainer else {"policy": Full()}
    return trainer(
        make_model() if model is None else model,
        transformers.TrainingArguments(str(folder), **defaults | options),
        train_dataset=Rows(labels) if dataset is None else dataset,
        **policy | (given or {}),
    )


def losses_alone(model: Any, rows: Rows, smoother: Any = None) -> Tensor:
    """Return the model's loss of each sample, computed in a batch of one."""
    model.eval()
    found = []
    shifts = isinstance(model, transformers.GPT2LMHeadModel)
    with torch.no_grad():
        for i in range(N):
            sample = {name: part.unsqueeze(0) for name, part in rows[i].items()}
            outputs = model(**sample)
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
            if smoother is not None:
                loss = smoother(outputs, sample["labels"], shift_labels=shifts)
            found.append(float(loss))
    return torch.tensor(found)


def logged(trainer: Any) -> list[float]:
    return [each["loss"] for each in trainer.state.log_history if "loss" in each]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([part.detach().flatten() for part in model.parameters()])


def trained(trainer: Any) -> Tensor:
    trainer.train()
    return weights(trainer.model)


@pytest.mark.parametrize(
    ("kind", "smoothing"),
    [
        *((kind, 0.0) for kind in MODELS),
        *((kind, 0.2) for kind in ("class", "tokens", "gpt2", "t5")),
    ],
)
def test_losses_are_those_of_the_model_for_each_sample(
    kind: str, smoothing: float, tmp_path: Path
) -> None:
    trainer = make(tmp_path, kind, learning_rate=0.0, label_smoothing_factor=smoothing)
    trainer.train()
    rows = Rows(MODELS[kind][1])
    plain = losses_alone(trainer.model, rows)
    assert torch.allclose(trainer.loader.table.scores, plain, rtol=1e-4)
    minimized = losses_alone(trainer.model, rows, trainer.label_smoother)
    assert torch.allclose(minimized, plain) == (smoothing == 0)
    assert logged(trainer) == pytest.approx([float(x.mean()) for x in minimized.split(4)], rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("class", {"label_smoothing_factor": 0.3}),
        ("class", {"label_smoothing_factor": 0.3, "gradient_accumulation_steps": 3}),
        ("number", {}),
        ("own", {"gradient_accumulation_steps": 3}),
    ],
)
def test_training_equals_the_stock_trainer_if_samples_weigh_the_same(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    stock = make(tmp_path, kind, transformers.Trainer, **options)
    ours = make(tmp_path, kind, **options)
    before = weights(ours.model)
    wanted = trained(stock)
    assert not torch.allclose(before, wanted, atol=1e-3)
    assert torch.allclose(trained(ours), wanted, atol=1e-6)
    assert logged(ours) == pytest.approx(logged(stock), rel=1e-3)


@pytest.mark.parametrize("kind", ["number", "llama"])
def test_accumulated_batches_are_one_large_batch(kind: str, tmp_path: Path) -> None:
    small, large = (
        make(tmp_path, kind, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        for size, steps in ((2, 3), (6, 1))
    )
    assert torch.allclose(trained(small), trained(large), atol=1e-6)
    assert logged(small) == pytest.approx(logged(large), rel=1e-3)


def test_the_mean_over_samples_is_not_the_mean_over_tokens(tmp_path: Path) -> None:
    """They agree only if all sequences have the same number of labels."""
    even, uneven = Rows("words"), Rows("words")
    even.labels = even.words
    for rows, is_same in ((even, True), (uneven, False)):
        ours, stock = (
            trained(make(tmp_path, "llama", kind, dataset=rows, gradient_accumulation_steps=2))
            for kind in (PruningTrainer, transformers.Trainer)
        )
        assert torch.allclose(ours, stock, atol=1e-6 if is_same else 1e-4) == is_same


def test_the_graph_of_the_models_own_loss_is_freed(tmp_path: Path) -> None:
    trainer = make(tmp_path, "llama")
    loader = trainer.get_train_dataloader()
    trainer.model.train()
    loss, outputs = trainer.compute_loss(trainer.model, next(iter(loader)), return_outputs=True)
    assert loss.requires_grad
    assert not outputs.loss.requires_grad


def own_losses(self: Any, outputs: Any, inputs: Any) -> Tensor:
    return 2 * nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")


def batch_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
    return outputs["logits"].mean()


class OwnLoss(transformers.Trainer):  # type: ignore[misc]
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return model(**inputs)["logits"].mean()


class Derived(PruningTrainer):
    """Overrides compute_loss as most recipes do."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs.pop("index", None)
        return model(**inputs)["logits"].mean()


class Mixed(PruningTrainer, OwnLoss):
    pass


@pytest.mark.parametrize(
    ("kind", "trainer", "given", "message"),
    [
        ("own", Derived, {}, r"compute_loss must not be overridden alone, got that of Derived, "),
        ("own", Mixed, {}, r"compute_loss must not be overridden alone, got that of OwnLoss, "),
        (
            "own",
            PruningTrainer,
            {"compute_loss_func": batch_loss},
            r"compute_loss_func must be None.* got <function batch_loss.*: override losses\(",
        ),
        ("question", PruningTrainer, {}, r"got BertForQuestionAnswering: override losses\("),
    ],
)
def test_a_loss_that_is_not_known_for_each_sample_is_refused(
    kind: str, trainer: Any, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = bert("ForQuestionAnswering") if kind == "question" else Own()
    with pytest.raises((TypeError, ValueError), match=message):
        make(tmp_path, trainer=trainer, model=model, given=given)


class Changed(Own):
    """Returns outputs in which ``changes`` replace those expected of the model."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.changes = changes

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        return super().forward(input_ids, labels) | self.changes


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Own(torch.tensor([1.0, 5.0, 1.0])), r"got Own, whose loss is .* over the labels"),
        (lambda: Changed(aux_loss=torch.tensor(1.0)), r"must not hold an aux_loss"),
        (lambda: Changed(loss=None), r"must hold the model's loss"),
        (lambda: Changed(loss=torch.zeros(4, 3)), r"must hold the model's loss"),
        (lambda: Changed(logits=None), r"outputs must hold logits, got dict"),
        (lambda: Changed(logits=torch.zeros(4, 9, 3)), r"the loss of a class needs integer labels"),
    ],
)
def test_another_loss_is_refused_before_the_first_step(
    model: Any, message: str, tmp_path: Path
) -> None:
    trainer = make(tmp_path, model=model(), given={"policy": UCB(keep=0.5)})
    before = weights(trainer.model)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert torch.equal(before, weights(trainer.model))
    assert int(trainer.loader.table.visits.sum()) == 0


def test_packed_samples_are_refused(tmp_path: Path) -> None:
    def pack(rows: Any) -> Any:
        return {name: torch.cat([row[name] for row in rows])[None, :32] for name in rows[0]}

    trainer = make(tmp_path, "llama", given={"data_collator": pack})
    with pytest.raises(ValueError, match=r"losses must be one for each of 4 samples, got \[1\]"):
        trainer.train()


class WithLosses(PruningTrainer):
    losses = own_losses


class DerivedWithLosses(WithLosses):
    num_calls = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.num_calls += 1
        return super().compute_loss(*args, **kwargs)


class MixedWithLosses(WithLosses, OwnLoss):
    pass


@pytest.mark.parametrize(
    ("kind", "trainer", "given", "smoothing"),
    [
        ("class", WithLosses, {}, 0.1),
        ("own", WithLosses, {"compute_loss_func": batch_loss}, 0.0),
        ("own", DerivedWithLosses, {}, 0.0),
        ("own", MixedWithLosses, {}, 0.0),
    ],
)
def test_overridden_losses_are_minimized(
    kind: str, trainer: Any, given: dict[str, Any], smoothing: float, tmp_path: Path
) -> None:
    options = {"learning_rate": 0.0, "gradient_accumulation_steps": 2}
    options |= {"label_smoothing_factor": smoothing}
    ours = make(tmp_path, kind, trainer, given=given, **options)
    ours.train()
    wanted = 2 * losses_alone(ours.model, Rows("class"))
    assert torch.allclose(ours.loader.table.scores, wanted, rtol=1e-4)
    assert logged(ours) == pytest.approx([float(x.mean()) for x in wanted.split(8)], rel=1e-3)
    assert getattr(ours, "num_calls", 6) == 6


@pytest.mark.parametrize("is_scaled", [True, False])
def test_loss_is_scaled_for_ga_is_followed(is_scaled: bool, tmp_path: Path) -> None:
    trainer = make(tmp_path, learning_rate=0.0, gradient_accumulation_steps=2)
    trainer.loss_is_scaled_for_ga = is_scaled
    trainer.train()
    wanted = losses_alone(trainer.model, Rows("class"))
    assert logged(trainer)[0] == pytest.approx(float(wanted[:8].mean()), rel=1e-3)


def test_losses_that_do_not_reach_the_policy_are_missed(tmp_path: Path) -> None:
    class Apart(Derived):
        losses = own_losses

    class Elsewhere(PruningTrainer):
        def get_train_dataloader(self) -> Any:
            return transformers.Trainer.get_train_dataloader(self)

    for trainer in (Apart, Elsewhere):
        with pytest.raises(RuntimeError, match="a step of training recorded no losses"):
            make(tmp_path, trainer=trainer, given={"policy": UCB(keep=0.5)}).train()
    make(
        tmp_path, trainer=Apart, given={"policy": RandomDynamic(keep=0.5)}
    ).train()  # this policy needs no losses


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_an_order_that_a_policy_cannot_follow_is_refused(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"train_sampling_strategy must .* got '{strategy}'"):
        make(tmp_path, trainer=WithLosses, train_sampling_strategy=strategy)


def test_the_configured_order_is_followed(tmp_path: Path) -> None:
    rows = Rows("class").words.tolist()
    for strategy, in_order in (("sequential", True), ("random", False)):
        options = {"train_sampling_strategy": strategy, "dataloader_in_order": in_order}
        trainer = make(tmp_path, **options)
        batches = trainer.get_train_dataloader()
        words = [row for batch in batches for row in batch["input_ids"].tolist()]
        assert (words == rows) == (strategy == "sequential")
        assert sorted(words) == sorted(rows)
        assert trainer.loader.in_order == in_order


@pytest.mark.parametrize(
    "sampler",
    [
        lambda data: SubsetRandomSampler(range(5)),
        lambda data: RandomSampler(data, replacement=True),
        lambda data: RandomSampler(data, num_samples=7),
    ],
)
def test_an_overridden_sampler_is_refused(sampler: Any, tmp_path: Path) -> None:
    class Sampling(PruningTrainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return sampler(self.train_dataset)

    with pytest.raises(TypeError, match=r"the sampler of the Trainer must be .* RandomSampler"):
        make(tmp_path, trainer=Sampling).get_train_dataloader()


def test_evaluation_leaves_a_column_named_index_alone(tmp_path: Path) -> None:
    class Indexed(Own):
        def forward(self, input_ids: Any, labels: Any, index: Any = None) -> Any:
            assert self.training or index.tolist() in [
                list(range(8 * i, 8 * i + 8)) for i in range(3)
            ]
            return super().forward(input_ids, labels)

    class Columns(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), "index": index}

    trainer = make(tmp_path, model=Indexed())
    trainer.train()
    before = trainer.loader.table.records.clone()
    trainer.evaluate(Columns("class"))
    assert torch.equal(trainer.loader.table.records, before)


def test_the_kind_does_not_depend_on_names_and_wrappers(tmp_path: Path) -> None:
    class Renamed(transformers.LlamaForCausalLM):  # type: ignore[misc]
        pass

    class TinyForSequenceClassification(Own):
        pass

    assert kind_of(Renamed(llama().config)) == "next token"
    assert kind_of(TinyForSequenceClassification()) == "class"
    model = gpt2()
    assert make(tmp_path, "gpt2", model=torch.compile(model))._bare_model() is model


def test_agreement_with_the_models_own_loss() -> None:
    plain = torch.tensor([[1.0, 3.0], [5.0, 0.0], [2.0, 2.0]])
    is_counted = torch.tensor([[True, True], [True, False], [True, True]])
    found = LabelLosses(plain, plain, is_counted)
    assert found.sample_means(plain).tolist() == [2.0, 5.0, 2.0]

    def outputs(*losses: float) -> Any:
        loss = torch.tensor(losses if len(losses) > 1 else losses[0])
        return {"loss": loss, "logits": torch.zeros(3, 2, 2)}

    assert agrees(outputs(13 / 5), found) is True
    assert agrees(outputs(3.0), found) is False
    assert agrees(outputs(13 / 5 * 1.001), found) is False
    # DataParallel gathers one loss for each part of the batch: here of two samples and of one.
    assert agrees(outputs(3.0, 2.0), found) is True
    assert agrees(outputs(2.0, 3.0), found) is False
    assert agrees(outputs(float("nan")), found) is None
    assert agrees(outputs(0.0), LabelLosses(plain, plain, torch.zeros_like(is_counted))) is None
    half = {"loss": torch.tensor(2.61, dtype=torch.bfloat16), "logits": torch.zeros(3, 2, 2)}
    assert agrees(half, found) is True


def test_labels_that_are_shifted_already() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = {"logits": torch.randn(2, 5, WORDS, generator=generator)}
    labels = torch.randint(WORDS, (2, 5), generator=generator)
    shifted = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    one = label_losses("next token", None, outputs, {"labels": labels}, 0.1)
    other = label_losses("next token", None, outputs, {"shift_labels": shifted}, 0.1)
    assert torch.equal(one.sample_means(one.smoothed), other.sample_means(other.smoothed))


@pytest.mark.parametrize(
    ("num_labels", "labels", "smoothing", "message"),
    [
        (2, None, 0.0, r"inputs must hold labels, got \[\]: override"),
        (2, torch.zeros(4, 3), 0.0, r"labels for multi_label.* shape .* \[4, 2\], got \[4, 3\]"),
        (2, torch.zeros(4, 2), 0.1, r"label_smoothing_factor must be 0 for multi_label.* got 0.1"),
        (1, torch.zeros(4), 0.1, r"label_smoothing_factor must be 0 for regression, got 0.1"),
        (2, torch.zeros(4, 9, dtype=torch.int64), 0.0, r"a sample needs integer labels .*\[4, 9\]"),
    ],
)
def test_labels_that_do_not_suit_the_model_are_refused(
    num_labels: int, labels: Tensor | None, smoothing: float, message: str
) -> None:
    config = types.SimpleNamespace(problem_type=None, num_labels=num_labels)
    inputs = {} if labels is None else {"labels": labels}
    outputs = {"logits": torch.zeros(4, num_labels)}
    with pytest.raises(ValueError, match=message):
        label_losses("sample", config, outputs, inputs, smoothing)
