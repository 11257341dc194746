"""The first rows of supervised fine-tuning."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from charter.reading.demonstrations import read_demonstrations
from charter.stages.rows import ROWS, Preview, Shown, response_rows
from charter.training.methods.sft import sft_tokens


def show_sft(preview: Preview) -> Shown | None:
    """Revisions, a helpful answer and examples from files as the fine-tuning sees them."""
    settings, trunk = preview.recipe.sft, preview.trunk
    if settings is None:
        return None
    demonstrations = (example for file in settings.data for example in read_demonstrations(Path(file)))
    examples = preview.examples + [(prompt.messages, text) for prompt, text in islice(demonstrations, ROWS)]
    tokens = sft_tokens(trunk, examples, settings.max_tokens or trunk.room)
    rows = response_rows(trunk, ["example"] * len(tokens), tokens, [messages for messages, _ in examples])
    return "Trained on: the response carries the loss, the prompt is masked.", rows
