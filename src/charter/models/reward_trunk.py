"""The trunk of a reward model. Where its folder has a reward head, training starts from that head and its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from charter.errors import InputError
from charter.models.adapters import moved_along
from charter.models.load import check_folder, check_vocabulary, first_line, kind_of, load_base, load_tokenizer
from charter.models.trunk import REWARD_CARD, REWARD_WEIGHTS, Scorers, Trunk, load_trunk
from charter.recipe.settings import LoRASettings
from charter.run.files import read_json

HEAD = "score.weight"  # of the decoders of transformers for sequence classification


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
    decoder of transformers for sequence classification with one label. InputError where the head or the base is missing.
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
    """A trained reward model of Charter, one or an ensemble, ready to score: its trunk and its roles. InputError where it is
    incomplete, or where the base of its adapters is missing."""
    card = read_json(folder / REWARD_CARD)
    path, lora = str(folder), None
    if isinstance(card, dict) and card.get("lora"):
        if not isinstance(card.get("base"), str):
            raise InputError("the base of the adapter is missing; train the reward model again", file=folder / REWARD_CARD)
        path, lora = moved_along(folder, card["base"]), LoRASettings(**card["lora"])
    trunk = load_reward_trunk(path, device=device, precision=precision, lora=lora)
    return trunk, trunk.load_scorers(folder)


def reward_folder(reward: Path) -> Path:
    """The folder of a trained reward model: the named one, or that in a run folder or in what `charter reward train` made.
    InputError where there is none."""
    for part in ("", "reward_model/model", "train/model"):
        if (reward / part / REWARD_CARD).is_file():
            return reward / part
    raise InputError(f"{REWARD_CARD} is missing; give a run folder, or a folder that charter reward train made", file=reward)


def single_scorer(path: str) -> str | None:
    """The architecture of a sequence classifier with one label; None for any other model. InputError where config.json does not
    load."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"the model does not load: {first_line(error)}", file=path) from None
    names = [name for name in config.architectures or () if name.endswith("ForSequenceClassification")]
    return names[0] if names and config.num_labels == 1 else None


def stored_tensor(path: str, name: str) -> Tensor:
    """One tensor from the weight files of a model. InputError where it is missing."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    folder = Path(path) if Path(path).is_dir() else Path(str(cached_file(path, "config.json"))).parent
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - no mapping
                tensor: Tensor = tensors.get_tensor(name)
                return tensor
    raise InputError(f"the reward head ({name}) is missing; the folder is not a whole reward model", file=path)


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
        if not isinstance(card.get("base"), str):
            raise InputError("the base of the adapter is missing; train the reward model again", file=folder / REWARD_CARD)
        trunk = load_reward_trunk(moved_along(folder, card["base"]), lora=LoRASettings(**card["lora"]), **loading)
        (role,) = trunk.load_scorers(folder).roles
        return trunk.adapters.merge_and_unload(adapter_names=[role]), trunk.heads[role].weight.detach()
    weights = {key.partition("/")[2]: value for key, value in load_file(folder / REWARD_WEIGHTS).items()}
    if "head.weight" not in weights:
        raise InputError("the reward head is missing; train the reward model again", file=folder / REWARD_WEIGHTS)
    head = weights.pop("head.weight")
    return load_base(str(folder), scores=True, weights=weights, **loading), head
