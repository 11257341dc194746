"""Talk to a model of a run in the terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

from charter.errors import InputError
from charter.records import Message, clean_text
from charter.run import derive_seed, read_json

MODELS = ("base", "sft", "policy")


def model_folder(run: Path, model: str) -> str:
    """Where a model of a run is. InputError where the run has none of that name, with what to do."""
    if model not in MODELS:
        raise InputError(f"no model {model!r}; a run has {', '.join(MODELS)}", field="--model")
    if model == "base":
        report = read_json(run / "report.json")
        if not isinstance(report, dict) or "recipe" not in report:
            raise InputError("holds no report.json, so its base model is unknown; charter run makes one", file=run)
        return str(report["recipe"]["model"])
    folder = run / {"sft": "sft", "policy": "rl"}[model] / "model"
    if not folder.exists():
        raise InputError(f"the run has no {model} model yet; charter run RECIPE --out {run} makes it", file=folder)
    return str(folder)


def visible(text: str) -> str:
    """Text of a model with its control characters spelled out: what it says must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def lines() -> Iterator[str]:
    """What the person types; prompts appear only where somebody sits there."""
    while True:
        try:
            yield input("you> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def chat_with(run: Path, model: str, *, temperature: float, max_new_tokens: int, seed: int) -> None:
    """Answer line by line until an empty one, the end of input, or /quit; /reset forgets the conversation.

    The oldest turns are dropped where the conversation outgrows the model. InputError where the model is not there.
    """
    folder = model_folder(run, model)
    if not math.isfinite(temperature) or temperature < 0:
        raise InputError(f"--temperature {temperature}: a number from 0 up")
    from charter.models.chat_template import encode_prompt
    from charter.models.generate import context_length
    from charter.models.load import pick_device
    from charter.models.sampler import LocalSampler
    from charter.models.trunk import load_trunk

    trunk = load_trunk(folder, device=pick_device("auto"))
    sampler = LocalSampler(trunk, model)
    limit = context_length(trunk.model)
    history: list[Message] = []
    turn = 0
    for line in lines():
        if not line.strip() or line.strip() == "/quit":
            return
        if line.strip() == "/reset":
            history = []
            continue
        try:
            history.append(Message(role="user", content=clean_text(line)))
        except ValueError as error:
            raise InputError(f"what was typed {error}") from None
        while limit and len(history) > 1 and len(encode_prompt(trunk.tokenizer, history)) + max_new_tokens > limit:
            history = history[2:]
        seeds = [[derive_seed(seed, "chat", turn)]]
        answer = sampler.generate([history], seeds, temperature=temperature, max_new_tokens=max_new_tokens)[0][0]
        history.append(Message(role="assistant", content=answer.text))
        turn += 1
        print(f"{model}> {visible(answer.text)}{' …' if answer.finish_reason == 'length' else ''}", flush=True)
