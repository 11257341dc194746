"""The trunk of a reward model. Where its folder has a reward head, training starts from that head and its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from charter.errors import InputError
from charter.models.formats.adapters import moved_along
from charter.models.heads import Scorers, ScoreScale
from charter.models.load import check_folder, check_vocabulary, config_of, kind_of, load_base, load_tokenizer
from charter.models.marks import last_round
from charter.models.trunk import REWARD_CARD, REWARD_WEIGHTS, Trunk, load_trunk
from charter.recipe.settings import LoRASettings
from charter.run.files import read_json

HEAD = "score.weight"  # of the decoders of transformers for sequence classification
SCALE = "charter_scale"
"""The key of config.json with `mean` and `std` of the scores on the training data: the head has no bias to take the mean."""


def load_reward_trunk(
    path: str,
    *,
    device: str = "cpu",
    precision: str = "float32",
    quantization: str | None = None,
    attention: str = "auto",
    say: Callable[[str], None] | None = None,
    **more: Any,
) -> Trunk:
    """The model of a folder as a trunk that only scores; the arguments are those of :func:`charter.models.trunk.load_trunk`.

    A folder with a reward head gives ``stored_head`` (1, H): a reward model of Charter, its adapter merged into its base, or a
    decoder of transformers for sequence classification with one label. InputError if the head or the base is missing.
    """
    loading: dict[str, Any] = {"device": device, "precision": precision, "quantization": quantization, "attention": attention}
    check_folder(path)
    if (Path(path) / REWARD_CARD).is_file():
        model, head = _reward_model(Path(path), **loading)
    else:
        architecture = single_scorer(path)
        kind = kind_of(path)
        if architecture is None or kind != "decoder":
            if architecture and say:
                say(f"  the head of {architecture} has several layers and is not used; the {kind} gets a new head")
            return load_trunk(path, writes=False, say=say, **loading, **more)
        model, head = load_base(path, scores=True, **loading), stored_tensor(path, HEAD)
    tokenizer = load_tokenizer(path)
    check_vocabulary(model, tokenizer, path)
    trunk = Trunk(model, tokenizer, precision=precision, path=path, say=say, **more)
    trunk.stored_head = head.float()
    return trunk


def load_reward_model(folder: Path, *, device: str = "cpu", precision: str = "float32") -> tuple[Trunk, Scorers]:
    """A trained reward model, ready to score: its trunk and its roles. The folder is of Charter (one, or an ensemble), or has a
    decoder for sequence classification with one label. InputError if it is incomplete, or where the base of its adapters is
    missing."""
    if not (folder / REWARD_CARD).is_file():
        trunk = load_reward_trunk(str(folder), device=device, precision=precision)
        if trunk.stored_head is None:
            raise InputError(f"the head of this reward model is not a single layer ({HEAD}); Charter cannot read it", file=folder)
        trunk.add_role("reward", head=True)
        return trunk, Scorers(("reward",), (stored_scale(str(folder)),))
    card = read_json(folder / REWARD_CARD)
    path, lora = str(folder), None
    if isinstance(card, dict) and card.get("lora"):
        path, lora = base_and_lora(folder, card)
    trunk = load_reward_trunk(path, device=device, precision=precision, lora=lora)
    return trunk, trunk.load_scorers(folder)


def reward_folder(reward: Path) -> Path:
    """The folder of a trained reward model: the named one, that of a run's last round, or that in what `charter reward train`
    made. InputError if there is none."""
    for part in ("", f"{last_round(reward, 'reward_model')}/model", "train/model"):
        if (reward / part / REWARD_CARD).is_file():
            return reward / part
    if (reward / "config.json").is_file() and single_scorer(str(reward)):
        return reward
    raise InputError(f"{REWARD_CARD} is missing; give a run folder, a folder that charter reward train made, or a model for "
                     "sequence classification with one label", file=reward)  # fmt: skip


def stored_scale(path: str) -> ScoreScale:
    """Mean and deviation of the scores that config.json names under ``SCALE``; 0 and 1 where it names none. InputError if they
    are not numbers."""
    scale = getattr(config_of(path), SCALE, {"mean": 0.0, "std": 1.0})
    try:
        mean, std = float(scale["mean"]), float(scale["std"])
    except (TypeError, KeyError, ValueError):
        mean = std = math.nan
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise InputError("must have a finite mean and a std above 0; write the folder again with charter model merge",
                         file=f"{path}/config.json", field=SCALE)  # fmt: skip
    return ScoreScale(mean, std)


def single_scorer(path: str) -> str | None:
    """The architecture of a sequence classifier with one label; None for any other model. InputError if config.json does not
    load."""
    config = config_of(path)
    names = [name for name in config.architectures or () if name.endswith("ForSequenceClassification")]
    return names[0] if names and config.num_labels == 1 else None


def stored_tensor(path: str, name: str) -> Tensor:
    """One tensor from the weight files of a model. InputError if it is missing."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    folder = Path(path) if Path(path).is_dir() else Path(str(cached_file(path, "config.json"))).parent
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - no mapping
                tensor: Tensor = tensors.get_tensor(name)
                return tensor
    raise InputError(f"the reward head ({name}) is missing; the folder is not a whole reward model", file=path)


def base_and_lora(folder: Path, card: Mapping[str, Any]) -> tuple[str, LoRASettings]:
    """The base model of a reward model that was trained as an adapter, and the adapter's settings."""
    if not isinstance(card.get("base"), str):
        raise InputError("the base of the adapter is missing; train the reward model again", file=folder / REWARD_CARD)
    return moved_along(folder, card["base"]), LoRASettings(**card["lora"])


def _reward_model(folder: Path, **loading: Any) -> tuple[Any, Tensor]:
    """The model and the head (1, H) of a reward model of Charter."""
    from safetensors.torch import load_file

    card = read_json(folder / REWARD_CARD)
    if not isinstance(card, dict) or not card.get("members"):
        raise InputError("the list of members is missing; train the reward model again", file=folder / REWARD_CARD)
    if len(card["members"]) > 1:
        raise InputError(f"an ensemble of {len(card['members'])} reward models; name a single one to start from", file=folder)
    if loading["quantization"]:
        raise InputError("the weights of this reward model are not in 4 bits; leave quantization out", file=folder)
    if card.get("lora"):
        base, lora = base_and_lora(folder, card)
        trunk = load_reward_trunk(base, lora=lora, **loading)
        (role,) = trunk.load_scorers(folder).roles
        return trunk.adapters.merge_and_unload(adapter_names=[role]), trunk.heads[role].weight.detach()
    weights = {key.partition("/")[2]: value for key, value in load_file(folder / REWARD_WEIGHTS).items()}
    if "head.weight" not in weights:
        raise InputError("the reward head is missing; train the reward model again", file=folder / REWARD_WEIGHTS)
    head = weights.pop("head.weight")
    return load_base(str(folder), scores=True, weights=weights, **loading), head
