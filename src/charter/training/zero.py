"""DeepSpeed's ZeRO (stages 1 and 2) under the optimizer: each process keeps a part of the moments and of the added-up gradient,
updates its part of the weights and gets the others' (Rajbhandari et al. 2020, arXiv:1910.02054, section 5).

The engine takes its gradients out of the backward pass. Here it is told to leave them where they are until the update, so the
loops need not know of it; until then a gradient is whole on every process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from charter.errors import InputError
from charter.team import team, together

MOMENTS = ("exp_avg", "exp_avg_sq")


def settings_of_launcher() -> dict[str, Any]:
    """The engine's `zero_optimization` as `accelerate launch` was told to set it. InputError for what is not used here, or where
    DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError("parallel: deepspeed needs DeepSpeed; install it with: pip install 'charter-align[deepspeed]'")
    said = {key: os.environ.get(f"ACCELERATE_DEEPSPEED_{key}", "none") for key in (
        "CONFIG_FILE", "ZERO_STAGE", "OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE")}  # fmt: skip
    if said["CONFIG_FILE"] != "none":
        raise InputError(
            "DeepSpeed's own file of settings is not read; give --zero_stage and --offload_optimizer_device"
        )
    stage = "2" if said["ZERO_STAGE"] == "none" else said["ZERO_STAGE"]
    if stage not in ("1", "2"):
        raise InputError(
            f"--zero_stage {stage}: stages 1 and 2 are used here; to divide the weights too start it with --use_fsdp "
            "--fsdp_version 2, to divide nothing without --use_deepspeed"
        )
    if said["OFFLOAD_PARAM_DEVICE"] != "none":
        raise InputError("--offload_param_device is for weights that are divided, which FSDP2 does here; leave it out")
    device = said["OFFLOAD_OPTIMIZER_DEVICE"]
    if device not in ("none", "cpu"):
        raise InputError(f"--offload_optimizer_device {device}: write cpu or none")
    return {"stage": int(stage), **({"offload_optimizer": {"device": device}} if device == "cpu" else {})}


class _Held(nn.Module):
    """The trained parameters, as the engine wants to be given them."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.held = nn.ParameterList(parameters)


class Zero:
    """The engine around one AdamW. All processes make its calls together."""

    def __init__(self, parameters: Sequence[nn.Parameter], adam: torch.optim.Optimizer, max_grad_norm: float) -> None:
        settings = settings_of_launcher()
        team()  # who has opened the connections that the engine takes over
        level = logging.root.manager.disable
        logging.disable(logging.INFO)  # pages of settings, from every process
        try:
            import deepspeed

            backend = torch.distributed.get_backend()
            deepspeed.init_distributed(backend, auto_mpi_discovery=False, dist_init_required=False)
            config = {
                "train_micro_batch_size_per_gpu": 1,  # a count of its own; what a step holds the loops decide
                "gradient_accumulation_steps": 1,
                "gradient_clipping": max_grad_norm,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 2**31,
                "zero_optimization": settings,
            }
            held = _Held(parameters)
            self.engine: Any = deepspeed.initialize(
                model=held, optimizer=adam, config=config, dist_init_required=False
            )[0]
        finally:
            logging.disable(level)
        self.parameters, self.adam = list(parameters), self.engine.optimizer.optimizer
        self.leave = contextlib.ExitStack()
        self._hold()

    def _hold(self) -> None:
        """From here to the update, gradients stay where the backward passes leave them."""
        self.leave.enter_context(self.engine.coalesce_grad_reduction())

    def step(self, rate: float) -> float:
        """Add up the gradients of the processes, clip, update, clear; the gradient norm before clipping, infinite where there
        was no update because a gradient was not finite."""
        for parameter in self.parameters:
            # Parts are exchanged in one order, so every process needs all of them; the engine divides by their number.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.mul_(team().size)
        for group in self.adam.param_groups:
            group["lr"] = rate
        with together(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of names in torch that the engine uses
            self.leave.close()
            self.engine.step()
        self._hold()
        torch.autograd.graph.increment_version(self.parameters)  # written where autograd does not look
        return float("inf") if self.engine.optimizer.overflow else float(self.engine.get_global_grad_norm())

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The whole moments of a parameter, on every process; nothing before the first update."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self.adam.state:
            return {}
        state = next(iter(self.adam.state.values()))
        return {
            **{key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS},
            "step": state["step"].clone(),
        }

    def restore(self, parameter: nn.Parameter, value: Tensor, moments: Mapping[str, Tensor]) -> None:
        """Put a parameter and its moments back, all of which every process has."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if moments and not self.adam.state:
            self.step(0.0)  # which makes room for moments and changes nothing
        with torch.no_grad():
            parameter.copy_(value)
        safe_set_full_fp32_param(parameter, value.to(parameter.device))
        for key, tensor in moments.items():
            if tensor.dim():
                safe_set_full_optimizer_state(parameter, tensor.to(parameter.device), key)
        for state in self.adam.state.values() if moments else ():
            state["step"].copy_(moments["step"])
