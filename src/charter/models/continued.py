"""A role of a trunk that starts with the weights of an earlier policy."""

from __future__ import annotations

from pathlib import Path

import torch

from charter.errors import InputError
from charter.models.formats.adapters import ADAPTER_WEIGHTS, base_of, check_adapter, is_adapter
from charter.models.formats.quantize import import_peft
from charter.models.load import check_folder, load_model
from charter.models.marks import is_flipped
from charter.models.trunk import Trunk
from charter.run.hashes import model_hash


def start_from(trunk: Trunk, role: str, folder: Path) -> None:
    """Give a role of the trunk the weights of the policy in ``folder``, or with LoRA those of the adapter beside it. The
    reference stays the trunk's base. InputError if the two do not fit together: other shapes, an adapter on another base, one
    trained with LoRA and the other without, a flipped control arm, or weights that several processes divide."""
    check_folder(str(folder))
    if is_flipped(folder):
        raise InputError("this policy is a control arm that learned from exchanged labels; name one that did not", file=folder)
    if trunk.divided:
        raise InputError("a policy that several processes divide cannot start from another one; use parallel: ddp")
    adapter = folder.with_name("adapter")
    if trunk.lora is not None:
        start_adapter(trunk, role, adapter)
        return
    if is_adapter(adapter):
        raise InputError("this policy was trained with LoRA; set rl.lora as it was", file=folder)
    stored = dict(load_model(str(folder)).named_parameters())
    parameters = dict(trunk.copies[role].named_parameters())
    if {name: value.shape for name, value in stored.items()} != {name: value.shape for name, value in parameters.items()}:
        raise InputError(f"this policy has other weights than {trunk.path}; both must come from one model", file=folder)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


def start_adapter(trunk: Trunk, role: str, adapter: Path) -> None:
    """Give a role of the trunk the weights of an adapter folder."""
    from safetensors.torch import load_file

    if not is_adapter(adapter):
        raise InputError("the policy has no adapter; leave rl.lora out as its training did", file=adapter)
    if model_hash(base_of(adapter)) != model_hash(trunk.path):
        raise InputError(f"the adapter was trained on another model than {trunk.path}, so it means nothing here; train with all "
                         "weights, or start RL anew", file=adapter)  # fmt: skip
    assert trunk.lora is not None
    rank, alpha = (check_adapter(adapter).get(name) for name in ("r", "lora_alpha"))
    if (rank, alpha) != (trunk.lora.rank, trunk.lora.alpha):
        raise InputError(f"the adapter does not fit rl.lora; set rank {rank} and alpha {alpha}, with which it was trained",
                         file=adapter)  # fmt: skip
    peft = import_peft()
    needed = peft.get_peft_model_state_dict(trunk.adapters, adapter_name=role, save_embedding_layers=False)
    stored = load_file(adapter / ADAPTER_WEIGHTS)
    if {name: value.shape for name, value in stored.items()} != {name: value.shape for name, value in needed.items()}:
        raise InputError("the adapter has other weights than rl.lora makes; name a policy that Charter trained", file=adapter)
    peft.set_peft_model_state_dict(trunk.adapters, stored, adapter_name=role)
