"""One named label of a sequence classifier, read on texts alone, under the classifier's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from charter.errors import InputError
from charter.models.architectures import ENCODERS
from charter.models.load import load_classifier


class Classifier:
    """A label of a classifier's folder. InputError if the folder is not a classifier's, has no such label, or is a reward
    model's that reads a whole conversation."""

    def __init__(self, folder: str, label: str, *, device: str = "cpu", batch_size: int = 32) -> None:
        self.model, self.tokenizer = load_classifier(folder, device)
        config = self.model.config
        if config.num_labels == 1 and config.model_type not in ENCODERS:
            raise InputError(
                f"is a reward model ({type(self.model).__name__} with one label), which reads the conversation under its chat "
                "template, and a classifier reads the answer alone; ask it from python:module:function, or train a reward model",
                file=folder,
            )
        names = {str(name).lower(): int(i) for i, name in config.id2label.items()}
        if label.lower() not in names:
            raise InputError(f"unknown label {label!r}; use one of {', '.join(sorted(names))}", file=folder)
        self.label, self.batch_size = names[label.lower()], batch_size

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Logits (N,) of the label, on the CPU. An empty text is read as a space."""
        return self._read(texts)[:, self.label]

    def probabilities(self, texts: Sequence[str]) -> list[float | None]:
        """Probability of the label for each text, in [0, 1]; None for an empty one."""
        config = self.model.config
        several = getattr(config, "problem_type", None) == "multi_label_classification" or config.num_labels == 1
        logits = self._read(texts)
        shares = (logits.sigmoid() if several else logits.softmax(dim=1))[:, self.label].tolist()
        return [value if text.strip() else None for text, value in zip(texts, shares, strict=True)]

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> Tensor:
        """All logits (N, labels), float32, on the CPU."""
        logits = []
        for start in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(
                [text if text.strip() else " " for text in texts[start : start + self.batch_size]],
                padding=True, truncation=True, return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            logits.append(self.model(**batch).logits.float().cpu())
        return torch.cat(logits)
