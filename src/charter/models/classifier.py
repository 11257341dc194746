"""A text classifier with named labels (a hate-speech classifier, say): logits of texts, under its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from charter.errors import InputError
from charter.models.load import load_classifier


class Classifier:
    """A sequence classifier of a folder or hub name. InputError where it has no head, or lacks a label that is asked for."""

    def __init__(self, folder: str, *, device: str = "cpu", batch_size: int = 32) -> None:
        self.folder, self.batch_size = folder, batch_size
        self.model, self.tokenizer = load_classifier(folder, device)
        self.labels = {str(name).lower(): int(i) for i, name in self.model.config.id2label.items()}

    def label(self, name: str) -> int:
        """The place of a label, whatever its case."""
        if name.lower() not in self.labels:
            raise InputError(f"has no label {name!r}; its labels are {', '.join(sorted(self.labels))}", file=self.folder)
        return self.labels[name.lower()]

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> Tensor:
        """Logits (N, labels), float32, on the CPU. A text that is longer than the model can see loses its end."""
        found = []
        for start in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(
                [text or " " for text in texts[start : start + self.batch_size]],
                padding=True, truncation=True, return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            found.append(self.model(**batch).logits.float().cpu())
        return torch.cat(found)

    def probabilities(self, texts: Sequence[str], label: str) -> list[float]:
        """P(label) of each text, a softmax over the labels: (N,)."""
        found: list[float] = self.logits(texts).softmax(dim=1)[:, self.label(label)].tolist()
        return found
