"""Adapter for the Trainer of Hugging Face transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from dynloader._checks import check_number
from dynloader.integrations._sample_losses import (
    REMEDY,
    LabelLosses,
    agrees,
    kind_of,
    label_losses,
)
from dynloader.integrations._tokens import (
    SAMPLE_LENGTHS,
    KeepLengths,
    Recorder,
    check_same,
    check_sft,
    fused_losses,
    is_sft,
    joined_losses,
    mean_over_tokens,
    of_samples,
    sft_scale,
)
from dynloader.integrations._trainer_loader import (
    LoaderCallback,
    is_shuffled,
    mean_steps_per_epoch,
    state_path,
)
from dynloader.integrations.accelerate import PreparedLoader, prepare
from dynloader.loading._loader import DataLoader
from dynloader.policies._policy import Policy
from dynloader.within_batch import select_tokens


class PruningTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that trains on the samples that a policy keeps.

    The Trainer queries the length of an epoch only once. Therefore all epochs have the same length.
    It is chosen so that training takes the number of steps that the policy needs, and the
    learning-rate schedule ends with the last step. Sample indices reach :meth:`compute_loss` as
    ``inputs["index"]``, even if the Trainer removes unused columns.

    Checkpoints include the state of the loader, in ``dynloader.pt``; training resumes from any
    step. To log epochs, call ``trainer.loader.log_to`` in a callback's ``on_train_begin``. The line
    of an epoch is written when it ends, before ``on_epoch_end`` of other callbacks.

    A policy needs one loss per sample. :meth:`losses` computes it for transformers models for
    sequence or token classification, regression, and causal, masked or sequence-to-sequence
    language modeling, and for your own models whose loss is the cross-entropy of ``logits``
    [b, classes]. The first batch is checked: if the mean of its losses is not the loss that the
    model returns, training stops with an error. With ``label_smoothing_factor``, the smoothed
    losses are minimized and the plain losses are recorded.

    The loss of a step is a mean over samples. For language models, the Trainer instead takes the
    mean over the tokens of a step (``num_items_in_batch``). Here every sequence has the same
    weight, regardless of its length. ``average_tokens_across_devices`` has no effect in training.

    A sample is a row of the dataset. If rows are packed beforehand, it is a packed sequence. The
    ``data_collator`` may join the samples of a batch into one row, as DataCollatorWithFlattening
    does.

    For supervised fine-tuning with TRL, combine this class with its trainer::

        class PruningSFTTrainer(PruningTrainer, SFTTrainer):
            pass

    It minimizes what SFTTrainer minimizes, the mean over the tokens of a step, each multiplied by
    the weight of its sample if the policy assigns weights. All else, such as packing, masks of
    prompts and metrics, is done by SFTTrainer.

    With ``keep_tokens``, the loss of a language model is the mean over the tokens of a batch that
    :func:`dynloader.select_tokens` selects. The recorded losses include all tokens.

    ``train_sampling_strategy`` must be "random" or "sequential".

    Args:
        policy: chooses the samples to keep. ``Full()`` keeps all.
        loader_options: additional keyword arguments for :class:`dynloader.DataLoader`.
        keep_tokens: fraction of the tokens to train on, in (0, 1]. None trains on all.
        reference_model: model of the same kind, whose losses are subtracted to select tokens. It is
            put in ``eval()`` mode, on the device of the training. None selects the highest losses.
        *args: arguments of the Trainer.
        **kwargs: arguments of the Trainer.

    Attributes:
        loader: the training loader; None before ``train``.

    Raises:
        TypeError: ``compute_loss`` is overridden, but :meth:`losses` is not.
        ValueError: ``compute_loss_func`` is given, or per-sample losses of the model are not known,
            and :meth:`losses` is not overridden; a policy does not support
            ``train_sampling_strategy``; ``keep_tokens`` is out of range, or given for a model that
            has no losses of tokens; or ``reference_model`` is given without it.
    """

    def __init__(
        self,
        *args: Any,
        policy: Policy,
        loader_options: dict[str, Any] | None = None,
        keep_tokens: float | None = None,
        reference_model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._check_order()
        self._overrides_losses = type(self).losses is not PruningTrainer.losses
        self._is_confirmed = self._overrides_losses
        self._is_sft = not self._overrides_losses and any(map(is_sft, type(self).__mro__))
        if not self._overrides_losses:
            self._check_loss()
        self.keep_tokens = keep_tokens
        self.reference_model = reference_model
        self._check_tokens()
        if reference_model is not None:
            reference_model.to(self.args.device).eval()
        self.policy = policy
        self.loader_options = loader_options or {}
        self.loader: DataLoader[Any] | None = None
        self._checkpoint: Path | None = None
        # Goes first, because the user's callbacks may add metrics to the log of an epoch.
        self.callback_handler.callbacks.insert(0, LoaderCallback(self))

    def _check_order(self) -> None:
        """Raise ValueError if a policy does not support the order of the samples."""
        strategy = getattr(self.args, "train_sampling_strategy", "random")
        if strategy not in ("random", "sequential"):
            raise ValueError(
                "train_sampling_strategy must be 'random' or 'sequential', because the policy "
                f"chooses the samples of a batch, got {strategy!r}"
            )

    def _check_loss(self) -> None:
        """Raise if the per-sample losses of the configured loss are not known."""
        for owner in type(self).__mro__:
            is_known = owner in (PruningTrainer, Trainer) or is_sft(owner)
            if "compute_loss" in vars(owner) and not is_known:
                raise TypeError(
                    f"compute_loss must not be overridden alone, got that of {owner.__name__}, "
                    f"which returns one loss for a batch: {REMEDY}"
                )
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func must be None, because it returns one loss for a batch, "
                f"got {self.compute_loss_func!r}: {REMEDY}"
            )
        model = self._bare_model()
        if kind_of(model) is None:
            raise ValueError(
                "model must be one whose per-sample losses are known, "
                f"got {type(model).__name__}: {REMEDY}"
            )
        if self._is_sft:
            check_sft(self)

    def _check_tokens(self) -> None:
        """Raise if tokens cannot be selected as configured."""
        if self.keep_tokens is None:
            if self.reference_model is not None:
                raise ValueError("keep_tokens must be given with a reference_model, got None")
            return
        check_number("keep_tokens", self.keep_tokens, "(0, 1]")
        model = self._bare_model()
        if self._overrides_losses or kind_of(model) not in ("token", "next token"):
            raise ValueError(
                "keep_tokens needs a model that predicts tokens, and losses() not overridden, "
                f"got {type(model).__name__}"
            )

    def _bare_model(self) -> Any:
        """Return the model without the wrappers of torch.compile, distributed training and peft."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, as the Trainer does.

        Raises:
            FileNotFoundError: the checkpoint does not include the state of a loader.
            ValueError: the checkpoint is for other data or another policy.
        """
        self._checkpoint = state_path(self, resume_from_checkpoint, "PruningTrainer")
        is_skipping = self.args.ignore_data_skip
        self._is_confirmed = self._overrides_losses
        # The loader resumes where it stopped, so the Trainer must not skip batches.
        self.args.ignore_data_skip = is_skipping or self._checkpoint is not None
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip = is_skipping

    def get_train_dataloader(self) -> PreparedLoader:
        """Return a loader with the policy and the options of the Trainer's loader.

        Raises:
            TypeError: a subclass uses its own sampler.
        """
        stock = super().get_train_dataloader()
        self.accelerator._dataloaders.remove(stock)
        shuffle = is_shuffled(stock)
        stock = stock.base_dataloader
        options: dict[str, Any] = {
            "collate_fn": KeepLengths(stock.collate_fn),
            "num_workers": stock.num_workers,
            "pin_memory": stock.pin_memory,
            "shuffle": shuffle,
            "drop_last": self.args.dataloader_drop_last,
            "in_order": stock.in_order,
            "worker_init_fn": stock.worker_init_fn,
            "multiprocessing_context": stock.multiprocessing_context,
            "prefetch_factor": stock.prefetch_factor,
            "persistent_workers": stock.persistent_workers,
            "policy": self.policy,
            "seed": self.args.seed if self.args.data_seed is None else self.args.data_seed,
            "return_index": True,
        } | self.loader_options
        size = self._train_batch_size
        if "steps_per_epoch" not in options and self.args.max_steps <= 0:
            epochs = math.ceil(self.args.num_train_epochs)
            world = (self.args.world_size, self.args.process_index)
            options["steps_per_epoch"] = mean_steps_per_epoch(
                stock.dataset, size, epochs, world, options
            )
        self.loader = DataLoader(stock.dataset, size, **options)
        if self._checkpoint is not None:
            state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
            self.loader.load_state_dict(state)
        return prepare(self.accelerator, self.loader)

    def _run_epoch(self, *args: Any, **given: Any) -> None:
        """Run one epoch, or the rest of the epoch that the checkpoint interrupted."""
        is_resumed = self._checkpoint is not None and given["epoch"] == given["epochs_trained"]
        if is_resumed and self.loader is not None:
            self.loader.set_epoch(given["epoch"])
            left = self.loader.num_left
            given["steps_in_epoch"] = left
            given["num_update_steps_per_epoch"] = math.ceil(
                left / self.args.gradient_accumulation_steps
            )
        super()._run_epoch(*args, **given)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train on one batch, as the Trainer does.

        Raises:
            RuntimeError: no losses were recorded, but the policy needs them.
        """
        table = None if self.loader is None else self.loader.table
        before = None if table is None else table.num_updates_known
        loss: Tensor = super().training_step(*args, **kwargs)
        if table is None or (self.policy.needs_scores and table.num_updates_known == before):
            raise RuntimeError(
                "a step of training recorded no losses: overrides of get_train_dataloader and "
                "compute_loss must call the methods of PruningTrainer"
            )
        return loss

    def losses(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of each sample, to be minimized. Override it to use another loss.

        By default, this is the loss that the model computes: the cross-entropy of a sample's class;
        the squared error or binary cross-entropy, averaged over a sample's labels; or the
        cross-entropy averaged over the tokens of a sample whose label is not -100, which is 0 if
        there are none.

        In training, ``compute_loss_func`` and ``label_smoothing_factor`` do not apply to the result
        of an override.

        Args:
            outputs: outputs of the model, including ``logits``.
            inputs: inputs of the model, including ``labels``.

        Returns:
            floating point [b].

        Raises:
            ValueError: ``outputs`` or ``inputs`` do not fit the kind of model.
        """
        found = self._label_losses(outputs, inputs)
        return found.sample_means(found.smoothed)

    def _label_losses(self, outputs: Any, inputs: dict[str, Any], model: Any = None) -> LabelLosses:
        smoothing = 0.0
        if model is None:
            model = self._bare_model()
            smoothing = 0.0 if self.label_smoother is None else self.label_smoother.epsilon
        kind = kind_of(model) or "class"
        return label_losses(kind, getattr(model, "config", None), outputs, inputs, smoothing)

    def _losses_and_scores(
        self, outputs: Any, inputs: dict[str, Any], lengths: list[int] | None
    ) -> tuple[Tensor, Tensor | None]:
        if self._overrides_losses:
            return self.losses(outputs, inputs), None
        if isinstance(outputs, dict) and torch.is_tensor(outputs.get("loss")):
            # Free the graph of the model's own loss, which can be as large as the logits.
            outputs["loss"] = outputs["loss"].detach()
        found = self._label_losses(outputs, inputs)
        if not self._is_confirmed:
            self._is_confirmed = self._confirm(outputs, found)
        found = joined_losses(found, lengths, inputs)
        scores = found.sample_means(found.plain.detach())
        if self.keep_tokens is not None:
            selected = self._selected_tokens(found, lengths, inputs)
            return mean_over_tokens(found.smoothed, selected), scores
        return found.sample_means(found.smoothed), None if self.label_smoother is None else scores

    def _selected_tokens(
        self, found: LabelLosses, lengths: list[int] | None, inputs: dict[str, Any]
    ) -> Tensor:
        """Return which labels to train on, bool, of the shape of the losses."""
        if self.keep_tokens is None:
            return found.is_counted
        reference = None
        if self.reference_model is not None:
            # Transformers keeps joined samples apart only if it makes no cache.
            has_cache = getattr(getattr(self.reference_model, "config", None), "use_cache", False)
            given = dict(inputs) | ({"use_cache": False} if has_cache else {})
            with torch.no_grad():
                outputs = self.reference_model(**given)
                plain = self._label_losses(outputs, inputs, self.reference_model).plain
            reference = of_samples(plain, lengths, inputs)
        assert self.loader is not None
        table = self.loader.table
        return select_tokens(
            found.plain,
            self.keep_tokens,
            mask=found.is_counted,
            reference=reference,
            seed=self.args.seed,
            step=0 if table is None else table.num_updates_known % 2**32,
        )

    def _sft_losses_and_scores(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        lengths: list[int] | None,
        num_items_in_batch: Any,
    ) -> tuple[Tensor, Tensor]:
        """Let SFTTrainer compute its loss, and return what each sample adds to it."""
        recorder, given = Recorder(model), dict(inputs)
        own = super().compute_loss(recorder, given, num_items_in_batch=num_items_in_batch)
        found = fused_losses(recorder.outputs, self.args.loss_type)
        scale = sft_scale(self, found, num_items_in_batch)
        if not self._is_confirmed:
            mean = mean_over_tokens(found.smoothed, found.is_counted).mean() * scale
            check_same(own.detach(), mean.detach())
            self._is_confirmed = True
        found = joined_losses(found, lengths, inputs)
        selected = self._selected_tokens(found, lengths, inputs)
        scores = found.sample_means(found.plain.detach())
        return mean_over_tokens(found.smoothed, selected) * scale, scores

    def _confirm(self, outputs: Any, found: LabelLosses) -> bool:
        """Return whether this batch could be checked. Raise if its losses are not the model's."""
        is_same = agrees(outputs, found)
        if is_same is False:
            own = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
            name = type(self._bare_model()).__name__
            raise ValueError(
                f"model must be one whose per-sample losses are known, got {name}, whose loss is "
                f"{float(own.detach().mean()):.6g} instead of the mean over the labels, "
                f"{float(found.plain.detach()[found.is_counted].mean()):.6g}: {REMEDY}"
            )
        return bool(is_same)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Record :meth:`losses` and return their mean. In evaluation, do as the Trainer does."""
        if self.loader is None or not model.training or "index" not in inputs:
            return super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch=num_items_in_batch
            )
        index, lengths = inputs.pop("index"), inputs.pop(SAMPLE_LENGTHS, None)
        outputs: Any = None
        found: tuple[Tensor, Tensor | None]
        if self._is_sft:
            found = self._sft_losses_and_scores(model, inputs, lengths, num_items_in_batch)
        else:
            outputs = model(**inputs)
            found = self._losses_and_scores(outputs, inputs, lengths)
        losses, scores = found
        if losses.shape != index.shape:
            raise ValueError(
                f"losses must be one for each of {len(index)} samples, got {list(losses.shape)}; "
                "a data_collator must not pack several samples into one, unless it joins their "
                "input_ids into one row"
            )
        loss = self.loader.update(losses, index, scores=scores)
        if not self._is_sft and not self._is_divided(num_items_in_batch):
            loss = loss / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _is_divided(self, num_items_in_batch: Any) -> bool:
        """Return whether the Trainer divides a batch's loss by the number of batches in a step."""
        is_scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if is_scaled is None:
            is_counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            is_scaled = is_counted or self.compute_loss_func is not None
        return not is_scaled
