"""A tiny language model and reward functions for tests of reinforcement learning, made locally."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT, load_script


def example() -> Any:
    """Return the example's module, with its model and tokenizer."""
    return load_script(ROOT / "examples" / "with_trl.py")


class Rewards:
    """A reward function that keeps what it was asked and what it answered.

    Attributes:
        rounds: for each call, the prompts of all completions and their rewards.
    """

    __name__ = "rewards"

    def __init__(self, passes: Any) -> None:
        self.passes = passes
        self.rounds: list[tuple[list[int], list[float]]] = []

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[Any]:
        assert "index" not in columns
        earned = self.passes(prompts=prompts, completions=completions)
        self.rounds.append(([int(prompt) for prompt in prompts], earned))
        return earned

    def prompts(self) -> list[list[int]]:
        """Return the distinct prompts of each call; fail unless all repeat equally often."""
        found = []
        for prompts, _ in self.rounds:
            counts = Counter(prompts)
            assert len(set(counts.values())) == 1
            found.append(list(counts))
        return found


def trainer_of(
    folder: Path, policy: Any, rewards: Any, num_prompts: int = 17, **options: Any
) -> Any:
    """Return a PruningGRPOTrainer whose prompt i is the number i."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    from dynloader.integrations.trl import PruningGRPOTrainer

    given = example()
    digits = given.tokenizer()
    ours = {
        name: options.pop(name)
        for name in ("passes", "eval_dataset", "train_dataset")
        if name in options
    }
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 12,
        "num_generations": 3,
        "max_completion_length": 2,
        "max_steps": 4,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
        "seed": 3,
    }
    rows = {"prompt": [str(i) for i in range(num_prompts)], "hint": list(range(num_prompts))}
    ours.setdefault("train_dataset", Dataset.from_dict(rows))
    return PruningGRPOTrainer(
        given.model(len(digits)),
        rewards,
        args=trl.GRPOConfig(str(folder), **(defaults | options)),
        processing_class=digits,
        policy=policy,
        **ours,
    )
