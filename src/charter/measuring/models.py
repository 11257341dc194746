"""The models that are evaluated, by what a user writes: a folder, a run, an adapter, a hub name, or the address of a server."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from charter.endpoints.client import import_httpx, read_key
from charter.endpoints.endpoint import EndpointSampler
from charter.endpoints.settings import EndpointSettings
from charter.errors import InputError
from charter.evaluation.measures import Measure
from charter.models.chat_template import encode_prompt, encode_response, prepare_tokenizer
from charter.models.cut import answer_rows
from charter.models.formats.adapters import base_of, is_adapter, merge_onto
from charter.models.heads import Scorers
from charter.models.load import (
    STAGE_OF,
    TEMPLATES,
    check_vocabulary,
    kind_of,
    load_base,
    marks_of,
    model_of_run,
    pick_device,
    raw_tokenizer,
    run_and_model,
)
from charter.models.marks import refuse_flipped
from charter.models.reward_trunk import load_reward_model, reward_folder, single_scorer
from charter.models.sampling.sampler import LocalSampler, Sampler
from charter.models.trunk import REWARD_CARD, Trunk, load_trunk
from charter.reading.sets.items import Item
from charter.recipe.source import locate
from charter.records import Prompt, content_id
from charter.run.hashes import model_hash
from charter.training.methods.reward_model import reward_scores

TOKENS_PER_PASS = 4096
URL = re.compile(r"(?:endpoint:)?(https?://[^#]+)(?:#(.+))?")


@dataclass(frozen=True)
class Place:
    """Where a model is. ``name``: in tables and files; ``url`` and ``folder``: one of the two; ``hash``: what its answers depend
    on; ``served``: the name by which a server knows it."""

    name: str
    written: str
    hash: str
    folder: str = ""
    url: str = ""
    api_key_env: str | None = None
    served: str = ""

    @property
    def precision(self) -> str:
        return "bfloat16" if pick_device("auto") == "cuda" else "float32"

    def sampler(self, cache: Path) -> Sampler:
        """The model, loaded to write and to weigh options. InputError if it cannot."""
        if self.url:
            settings = EndpointSettings(url=self.url, model=self.served, api_key_env=self.api_key_env)
            return EndpointSampler(self.name, settings, cache / content_id(self.url, self.served))
        return LocalSampler(load_writer(self.folder, self.precision), self.name)

    def rewarder(self) -> Rewarder:
        """The model, loaded to score answers. InputError if it is not a reward model."""
        if self.url:
            raise InputError("this set needs a reward model, and a server only writes; give the folder of a reward model",
                             file=self.written)  # fmt: skip
        return Rewarder(*load_rewarder(self.folder, self.precision))


def place_of(written: str, rewards: bool, api_key_env: str | None, understood: bool) -> Place:
    """The model that ``written`` names; of a run its reward model where only ``rewards`` are wanted. InputError if nothing is
    there."""
    if match := URL.fullmatch(written):
        url = match[1].rstrip("/")
        name = match[2] or only_model(url, api_key_env)
        return Place(name, written, content_id(["endpoint", url, name]), url=url, served=name, api_key_env=api_key_env)
    if written.startswith("endpoint:"):
        raise InputError(
            "an endpoint has no name without a recipe; give its address, as endpoint:http://HOST/v1#MODEL", file=written
        )
    folder, name = folder_of(written, rewards)
    refuse_flipped(folder, understood)
    weights = model_hash(folder)
    if is_adapter(Path(folder)):
        weights = content_id([weights, model_hash(base_of(Path(folder)))])
    return Place(name, written, weights, folder)


def folder_of(written: str, rewards: bool) -> tuple[str, str]:
    """Folder (or hub name) and name of a model: of a run its policy, or ``RUN:base``, ``RUN:sft``, ``RUN:policy``, ``RUN:person
    NAME``; where only ``rewards`` are wanted, its reward model."""
    located = locate(written, Path.cwd())
    run, arm = run_and_model(written)
    if not Path(located).exists() and run and Path(run).is_dir():
        return model_of_run(Path(run), arm), f"{Path(run).resolve().name}-{arm}"
    path = Path(located)
    is_model = any((path / name).exists() for name in ("config.json", "adapter_config.json", REWARD_CARD))
    if not path.is_dir() or is_model:
        return located, path.name if path.is_dir() else located
    if not rewards and ((path / "report.json").exists() or any((path / stage).is_dir() for stage in STAGE_OF.values())):
        return model_of_run(path, "policy"), f"{path.name}-policy"
    return str(reward_folder(path)), f"{path.name}-reward"


def only_model(url: str, api_key_env: str | None) -> str:
    """The name of the only model of a server. InputError if it does not answer, or has several."""
    headers = {"authorization": f"Bearer {read_key(api_key_env, '--api-key-env')}"} if api_key_env else {}
    try:
        answer = import_httpx().get(f"{url}/models", headers=headers, timeout=30.0)
        names = [str(row["id"]) for row in answer.json()["data"]]
    except InputError:
        raise
    except Exception as error:  # whatever the connection and the server's text raise
        raise InputError(f"the server does not name its models ({type(error).__name__}); write URL#MODEL", file=url) from None
    if len(names) != 1:
        raise InputError(f"the server has {len(names)} models ({', '.join(names[:5])}); write URL#MODEL", file=url)
    return names[0]


def load_writer(folder: str, precision: str) -> Trunk:
    """A model that writes; an adapter is merged into its base. InputError if it does not load, or is a reward model."""
    if (Path(folder) / REWARD_CARD).exists():
        raise InputError("a reward model does not write answers; give it a set of pairs, or a model that writes", file=folder)
    if not is_adapter(Path(folder)):
        return load_trunk(folder, device=pick_device("auto"), precision=precision)
    base = base_of(Path(folder))
    model = merge_onto(load_base(base, pick_device("auto"), precision=precision), Path(folder))
    ends, bos_id = marks_of(base)
    named = folder if (Path(folder) / "tokenizer_config.json").is_file() else base  # it may have a template of its own
    tokenizer = prepare_tokenizer(raw_tokenizer(named), template=TEMPLATES[kind_of(base)], ends=ends, bos_id=bos_id)
    check_vocabulary(model, tokenizer, folder, base=base)
    return Trunk(model, tokenizer, precision=precision, path=folder)


def load_rewarder(folder: str, precision: str) -> tuple[Trunk, Scorers]:
    """A reward model of Charter, or a decoder for sequence classification with one label. InputError for any other model."""
    is_charters = (Path(folder) / REWARD_CARD).exists()
    if not is_charters and ((Path(folder) / "adapter_config.json").exists() or single_scorer(folder) is None):
        raise InputError("this set needs a reward model: a folder of charter reward train or of a run, or a model for sequence "
                         "classification with one label", file=folder)  # fmt: skip
    return load_reward_model(Path(folder), device=pick_device("auto"), precision=precision)


class Rewarder:
    """A reward model that scores the answers of items."""

    def __init__(self, trunk: Trunk, scorers: Scorers) -> None:
        self.trunk, self.scorers = trunk, scorers

    @torch.no_grad()
    def rewards(self, items: Sequence[Item]) -> list[tuple[list[float], bool]]:
        """The score of each answer of each item, and whether a dialogue of it was cut to the model's context, oldest tokens
        first."""
        groups = [answer_rows(self.trunk.tokenizer, item.prompt.messages, item.options, self.trunk.room) for item in items]
        rows = [row for group in groups for row in group]
        scores = iter(reward_scores(self.trunk, self.scorers, rows, TOKENS_PER_PASS, standardise=False).tolist())
        return [([next(scores) for _ in group], any(row.lost for row in group)) for group in groups]


def weigh(sampler: Sampler, items: Sequence[Item]) -> list[tuple[list[float], bool]]:
    """The log-probabilities (nats) that a model gives the options of each item, and whether it was left unread: a model knows
    nothing of tokens beyond its context, so such an item has NaN for every option."""
    unread = [isinstance(sampler, LocalSampler) and is_beyond(sampler.trunk, item) for item in items]
    readable = [item for item, skip in zip(items, unread, strict=True) if not skip]
    rows = iter(
        sampler.option_logprobs([item.prompt.messages for item in readable], [item.options for item in readable])
        if readable
        else ()
    )
    return [
        ([math.nan] * len(item.options), True) if skip else (next(rows), False) for item, skip in zip(items, unread, strict=True)
    ]


def is_beyond(trunk: Trunk, item: Item) -> bool:
    """Whether an item with its longest option has more tokens than the model's context."""
    longest = max(len(encode_response(trunk.tokenizer, option)) for option in item.options)
    return trunk.room is not None and len(encode_prompt(trunk.tokenizer, item.prompt.messages)) + longest > trunk.room


def reward_measure(name: str, place: Place) -> Measure:
    """The reward of each answer as a measure; the model is loaded when the first answer is scored."""
    load = cache(place.rewarder)

    def rewards(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        items = [Item(prompt.id, prompt, (text,)) for prompt, text in zip(prompts, texts, strict=True)]
        return [scores[0] for scores, _ in load().rewards(items)]

    return Measure(name, "reward", rewards)


def is_rewarder(place: Place) -> bool | None:
    """Whether a model is a reward model, by its folder; None for a name on a hub, of which it is known once it is loaded."""
    folder = Path(place.folder)
    if place.url or is_adapter(folder):
        return False
    if not folder.is_dir():
        return None
    return (folder / REWARD_CARD).exists() or single_scorer(place.folder) is not None
