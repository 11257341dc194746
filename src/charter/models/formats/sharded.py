"""A model whose weights are divided among the processes (FSDP2, `torch.distributed.fsdp.fully_shard`).

Each process keeps a part of every weight, of its gradient and of its moments. A layer is whole only while it computes. So all
processes must make their passes in step: as many, of the same roles, in the same order (``Trunk.turns``).
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
    """A model, divided by layers. Every computation goes through ``forward``: inside, the weights outside the layers (embedding,
    last norm, vocabulary projection) are whole, and each layer is whole during its call."""

    def __init__(self, model: Any) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        super().__init__()
        self.model, self.is_whole = model, False
        mesh = init_device_mesh(next(model.parameters()).device.type, (team().size,))
        layers = set(getattr(model, "_no_split_modules", None) or ())
        for module in [part for part in model.modules() if type(part).__name__ in layers]:
            fully_shard(module, mesh=mesh)
        fully_shard(self, mesh=mesh, reshard_after_forward=True)
        for module in self.parts():
            # Each loss is a share of one mean over the batch, so gradients are added and not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
        with torch.no_grad():  # the outermost module must be the first to run
            self(lambda _: None)

    def forward(self, body: Callable[[Any], T]) -> T:
        return body(self.model)

    def parts(self) -> list[Any]:
        """The layers, and the rest of the model."""
        from torch.distributed.fsdp import FSDPModule

        return [module for module in self.modules() if isinstance(module, FSDPModule)]

    @contextlib.contextmanager
    def whole(self) -> Iterator[Any]:
        """The model with all weights on every process: for sampling, where rows end after unequal numbers of steps."""
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
        """A new model with the same weights, all of them on every process."""
        state = {name: whole_tensor(parameter) for name, parameter in self.model.named_parameters()}
        with torch.random.fork_rng():
            model = type(self.model)(copy.deepcopy(self.model.config))
        model.load_state_dict(state, strict=False)  # weights that are tied have one name of two
        return model.to(next(iter(state.values())).device).eval()


def is_divided(tensor: Tensor) -> bool:
    """Whether a tensor is the part of one process."""
    return hasattr(tensor, "full_tensor")


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; if it is divided, every process must call this."""
    detached: Tensor = tensor.detach()
    return detached.full_tensor() if is_divided(detached) else detached  # type: ignore[attr-defined]


def save_divided(folder: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Every process writes its part, then the main process writes the card (plain values) that makes the parts valid and removes
    older parts."""
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
    tensors = {}
    for name in card["tensors"]:
        parameter, _, moment = name.partition("#")
        tensors[name] = torch.zeros(()) if moment == "step" else torch.zeros_like(parameters[parameter]).detach()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled"
        )  # a single process may resume the work of several
        dcp.load(tensors, checkpoint_id=folder / card["folder"], no_dist=team().size == 1)  # type: ignore[attr-defined]
    return card, tensors


def put(place: Tensor, value: Tensor) -> None:
    """Copy all of a tensor into a place that may be divided; every process has all of ``value``."""
    with torch.no_grad():
        if is_divided(place) and not is_divided(value):
            from torch.distributed.tensor import distribute_tensor

            mesh, placements = place.device_mesh, place.placements  # type: ignore[attr-defined]
            value = distribute_tensor(value.to(place.device), mesh, placements, src_data_rank=None)
        place.copy_(value)
