"""Trains by reinforcement learning with TRL. PruningGRPOTrainer replaces GRPOTrainer.

python examples/with_trl.py [CHECKPOINT_FOLDER]

The model is tiny, and made here. A prompt is a digit d, and a completion passes if its first token
is one of the first d letters. So the prompt 0 never passes, and 16 always does.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig

import dynloader
from dynloader.integrations.trl import PruningGRPOTrainer

LETTERS = "abcdefghijklmnop"


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of numbers and letters."""
    words = ["<pad>", "<eos>", "<unk>", *LETTERS, *map(str, range(len(LETTERS) + 1))]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def model(vocabulary: int) -> LlamaForCausalLM:
    """Return a causal language model of random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=16,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def passes(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Return 1 for each completion whose first letter is one that its prompt allows."""
    pairs = zip(prompts, completions, strict=True)
    return [float(LETTERS.find((text.split() or ["?"])[0]) in range(int(p))) for p, text in pairs]


def main() -> None:
    """Train, and print what the prompts earned."""
    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    digits = tokenizer()
    arguments = GRPOConfig(
        folder,
        per_device_train_batch_size=32,
        num_generations=4,
        max_completion_length=2,
        max_steps=24,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = PruningGRPOTrainer(
        model(len(digits)),
        passes,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [str(i % 17) for i in range(68)]}),
        processing_class=digits,
        policy=dynloader.PassRate(prompts=8, target=0.5, decay=0.8),
    )
    trainer.train()
    table = trainer.rounds.table
    rollouts = table.passes.rollouts
    hardest, middle = rollouts[::17].sum(), rollouts[8::17].sum()
    print(f"{trainer.rounds.number} rounds, {int(rollouts.sum())} rollouts")
    print(f"{int(hardest)} of prompts that never pass, {int(middle)} of those in the middle")


if __name__ == "__main__":
    main()
