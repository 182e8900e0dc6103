"""Fine-tunes a small causal language model, and prunes within its first and only epoch.

    python examples/sft.py sft       # TRL's SFTTrainer, on 60 % of the tokens
    python examples/sft.py trainer   # transformers' Trainer, on half of the sequences
    python examples/sft.py loop      # your own loop, on half of every batch

Nothing is downloaded: the model is made from a config and reads bytes, and the text is the source
of Python's standard library. Replace `texts`, `tokenizer` and `new_model` by your own.
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
    default_data_collator,
)
from trl import SFTConfig, SFTTrainer

import dynloader
from dynloader.integrations.transformers import PruningTrainer

LENGTH = 128  # tokens of a packed sequence
BATCH = 16  # sequences of a backward pass
ACCUMULATE = 2  # backward passes of a step
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class PruningSFTTrainer(PruningTrainer, SFTTrainer):  # type: ignore[misc]
    """An SFTTrainer that prunes."""


def texts(num_files: int) -> Dataset:
    """Return the text of files, as an Arrow table with the column "text"."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:num_files]
    return Dataset.from_dict({"text": [path.read_text(errors="replace") for path in paths]})


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each byte, and one for the end of a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    by_byte = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    by_byte.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    by_byte.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=by_byte, eos_token="<end>", pad_token="<pad>")


def pack(files: Dataset, tokenizer: PreTrainedTokenizerFast) -> Dataset:
    """Return sequences of LENGTH tokens, which may span files, as SFTTrainer packs them."""

    def cut(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [text + tokenizer.eos_token for text in batch["text"]]
        tokens = [token for each in tokenizer(texts)["input_ids"] for token in each]
        starts = range(0, len(tokens) - LENGTH + 1, LENGTH)
        rows = [tokens[start : start + LENGTH] for start in starts]
        return {"input_ids": rows, "labels": rows}

    return files.map(cut, batched=True, remove_columns=["text"])


def new_model(tokenizer: PreTrainedTokenizerFast, width: int, depth: int) -> LlamaForCausalLM:
    """Return a model with random weights."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return model.to(DEVICE)


def token_losses(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Return the loss of each token but the first, float32 [b, LENGTH - 1]."""
    tokens = tokens.to(model.device)
    with torch.autocast(tokens.device.type, torch.bfloat16):
        logits = model(input_ids=tokens).logits[:, :-1]
    return F.cross_entropy(logits.float().mT, tokens[:, 1:], reduction="none")


def small_model(rows: Dataset, tokenizer: PreTrainedTokenizerFast, steps: int) -> LlamaForCausalLM:
    """Return a small model, trained briefly. Use one that you have, if you have one."""
    model = new_model(tokenizer, 32, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in first(rows.with_format("torch").iter(BATCH), steps):
        token_losses(model, batch["input_ids"]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def arguments(folder: str, steps: int) -> dict[str, Any]:
    """Return the arguments that both trainers share."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATE,
        "bf16": True,
        "use_cpu": DEVICE == "cpu",
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def with_sft(
    files: Dataset, tokenizer: PreTrainedTokenizerFast, steps: int
) -> dynloader.ScoreTable:
    """Train on the tokens whose loss exceeds that of a small model most (Rho-1)."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = PruningSFTTrainer(
            new_model(tokenizer, 64, 2),
            SFTConfig(
                **arguments(folder, steps),
                max_length=LENGTH,
                packing=True,
                packing_strategy="wrapped",  # "bfd", the default, keeps the texts apart
            ),
            train_dataset=files,
            processing_class=tokenizer,
            policy=dynloader.Full(),
            keep_tokens=0.6,
            reference_model=small_model(pack(files, tokenizer), tokenizer, steps),
        )
        trainer.train()
    return table_of(trainer.loader)


def with_trainer(
    files: Dataset, tokenizer: PreTrainedTokenizerFast, steps: int
) -> dynloader.ScoreTable:
    """Train on the sequences with the highest loss of a small model, which has read all of them."""
    rows = pack(files, tokenizer)
    small = small_model(rows, tokenizer, steps)
    with torch.no_grad():
        batches = rows.with_format("torch").iter(BATCH)
        scores = torch.cat([token_losses(small, each["input_ids"]).mean(1) for each in batches])
    with tempfile.TemporaryDirectory() as folder:
        trainer = PruningTrainer(
            new_model(tokenizer, 64, 2),
            TrainingArguments(**arguments(folder, steps)),
            train_dataset=rows,
            data_collator=default_data_collator,
            policy=dynloader.Static(scores=scores, keep=0.5),
        )
        trainer.train()
    return table_of(trainer.loader)


def with_loop(
    files: Dataset, tokenizer: PreTrainedTokenizerFast, steps: int
) -> dynloader.ScoreTable:
    """Train on the half of every batch with the highest loss. Record the losses of tokens, too."""
    rows = pack(files, tokenizer).with_format("torch")
    loader: dynloader.DataLoader[Any] = dynloader.DataLoader(
        rows, 2 * BATCH, drop_last=True, policy=dynloader.Full(), return_index=True
    )
    model = new_model(tokenizer, 64, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    each_token = dynloader.ScoreTable(len(rows) * (LENGTH - 1))
    for number, batch in enumerate(first(loader, steps * ACCUMULATE), start=1):
        tokens, index = batch["input_ids"].to(DEVICE), batch["index"].to(DEVICE)
        with torch.no_grad():
            losses = token_losses(model, tokens)
        loader.update(losses.mean(1), index)
        place = index[:, None] * (LENGTH - 1) + torch.arange(LENGTH - 1, device=DEVICE)
        each_token.update(place.view(-1), losses.view(-1))
        chosen = dynloader.select_batch(losses.mean(1), BATCH, step=number).positions
        (token_losses(model, tokens[chosen]).mean() / ACCUMULATE).backward()
        if number % ACCUMULATE == 0:
            optimizer.step()
            optimizer.zero_grad()
            print(f"step {number // ACCUMULATE}: loss {float(losses.mean()):.3f}")
    print(f"{int((each_token.visits > 0).sum())} of {len(each_token)} tokens recorded")
    return table_of(loader)


def table_of(loader: dynloader.DataLoader[Any] | None) -> dynloader.ScoreTable:
    """Return the table of a loader that has one."""
    assert loader is not None
    assert loader.table is not None
    return loader.table


def first(batches: Any, count: int) -> Iterator[Any]:
    """Yield the first ``count`` batches."""
    for number, batch in enumerate(batches):
        if number == count:
            return
        yield batch


def main() -> None:
    """Train, and print how many sequences were recorded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    ways = {"sft": with_sft, "trainer": with_trainer, "loop": with_loop}
    parser.add_argument("way", choices=ways)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--files", type=int, default=40)
    args = parser.parse_args()
    table = ways[args.way](texts(args.files), byte_tokenizer(), args.steps)
    seen = table.visits > 0
    mean = float(table.last_loss[seen].mean())
    print(f"{int(seen.sum())} of {len(table)} sequences recorded, mean loss {mean:.2f}")


if __name__ == "__main__":
    main()
