"""A model whose weights are divided among the processes (FSDP2, `torch.distributed.fsdp.fully_shard`).

Each process keeps a part of every weight, of its gradient and of its moments. A layer is whole only while it computes. All
processes must therefore make their passes in step: as many, of the same roles, in the same order (``Trunk.turns``).
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from charter.run.files import read_json, write_json
from charter.run.team import team

T = TypeVar("T")

CARD = "card.json"  # of a checkpoint


class Sharded(nn.Module):
    """A model, divided by layers. Whatever is computed with it goes through ``forward``: inside, the weights that belong to no
    layer (embedding, last norm, vocabulary projection) are whole, and each layer is while it is called."""

    def __init__(self, model: Any) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__()
        self.model, self.is_whole = model, False
        mesh = init_device_mesh(next(model.parameters()).device.type, (team().size,))
        layers = set(getattr(model, "_no_split_modules", None) or ())
        for module in [one for one in model.modules() if type(one).__name__ in layers]:
            fully_shard(module, mesh=mesh)
        fully_shard(self, mesh=mesh, reshard_after_forward=True)
        for module in self.parts():
            # The losses are shares of one mean over the batch, so gradients are added up and not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # what gloo can do
        with torch.no_grad():  # the outermost module must be the first to run
            self(lambda _: None)

    def forward(self, body: Callable[[Any], T]) -> T:
        return body(self.model)

    def parts(self) -> list[Any]:
        """The layers and what is left over."""
        from torch.distributed.fsdp import FSDPModule

        return [module for module in self.modules() if isinstance(module, FSDPModule)]

    @contextlib.contextmanager
    def whole(self) -> Iterator[Any]:
        """The model with all weights on every process: to sample with, where rows end after unequal numbers of steps."""
        if self.is_whole:
            yield self.model
            return
        self.is_whole = True
        for module in self.parts():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield self.model
        finally:
            self.is_whole = False
            for module in self.parts():
                module.reshard()
                module.set_reshard_after_forward(True, recurse=False)

    def undivided(self) -> Any:
        """A model of its own with the same weights, all of them on every process."""
        state = {name: whole_tensor(parameter) for name, parameter in self.model.named_parameters()}
        with torch.random.fork_rng():
            found = type(self.model)(copy.deepcopy(self.model.config))
        found.load_state_dict(state, strict=False)  # weights that are tied have one name of two
        return found.to(next(iter(state.values())).device).eval()


def is_divided(tensor: Tensor) -> bool:
    """Whether a tensor is one process's part of it."""
    return hasattr(tensor, "full_tensor")


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is divided every process must ask."""
    found: Tensor = tensor.detach()
    return found.full_tensor() if is_divided(found) else found  # type: ignore[attr-defined]


def save_divided(folder: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Every process writes its part, then the main one the card (plain values) that makes the parts count; the ones before
    are removed."""
    import torch.distributed.checkpoint as dcp

    name = f"step-{card['step']}"
    dcp.save(dict(tensors), checkpoint_id=folder / name)  # type: ignore[attr-defined]
    write_json(folder / CARD, {**card, "folder": name, "tensors": sorted(tensors)})
    if team().is_main:
        for old in folder.glob("step-*"):
            if old.name != name:
                shutil.rmtree(old)


def load_divided(folder: Path, parameters: Mapping[str, nn.Parameter]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and the tensors of a checkpoint, divided as the parameters of the same name are now: among as many processes as
    wrote it, among others, or not at all. ``#`` stands between the name of a parameter and that of its moment."""
    import torch.distributed.checkpoint as dcp

    card = team().on_main(lambda: read_json(folder / CARD))
    found = {}
    for name in card["tensors"]:
        parameter, _, moment = name.partition("#")
        found[name] = torch.zeros(()) if moment == "step" else torch.zeros_like(parameters[parameter]).detach()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process may go on alone
        dcp.load(found, checkpoint_id=folder / card["folder"], no_dist=team().size == 1)  # type: ignore[attr-defined]
    return card, found


def put(place: Tensor, value: Tensor) -> None:
    """Copy all of a tensor into a place that may be divided; every process has all of ``value``."""
    with torch.no_grad():
        if is_divided(place) and not is_divided(value):
            from torch.distributed.tensor import distribute_tensor

            mesh, placements = place.device_mesh, place.placements  # type: ignore[attr-defined]
            value = distribute_tensor(value.to(place.device), mesh, placements, src_data_rank=None)
        place.copy_(value)
