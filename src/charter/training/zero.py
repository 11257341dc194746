"""DeepSpeed's ZeRO under the optimizer: each process keeps a part of the moments and of the added-up gradient, updates its part
of the weights and gets the others' (Rajbhandari et al. 2020, arXiv:1910.02054, section 5.1).

In its first stage the engine leaves gradients where the backward passes put them until the update, so the loops need not know of
it; until then a gradient is whole on every process. Stage 2 would take them away after every pass.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from charter.errors import InputError
from charter.models.memory import is_out_of_memory
from charter.run.team import LostProcess, team

MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKET = 2**24  # numbers that travel at once: 64 MB


def settings_of_launcher() -> dict[str, Any]:
    """The engine's `zero_optimization` by the flags of `accelerate launch`. InputError for flags that Charter does not use, and
    where DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError("parallel: deepspeed needs DeepSpeed; install it with: pip install 'charter-align[deepspeed]'")
    if launcher_value("DEEPSPEED_CONFIG_FILE") != "none":
        raise InputError("Charter does not read DeepSpeed's file of settings; use --zero_stage and --offload_optimizer_device")
    stage = launcher_value("DEEPSPEED_ZERO_STAGE")
    if stage not in ("none", "1", "2"):
        raise InputError(
            f"--zero_stage {stage}: not supported; use 1 or 2, --use_fsdp --fsdp_version 2 to divide the weights too, or no "
            "--use_deepspeed to divide nothing"
        )
    if launcher_value("DEEPSPEED_OFFLOAD_PARAM_DEVICE") != "none":
        raise InputError("--offload_param_device is for divided weights, which FSDP2 does here; leave it out")
    if launcher_value("GRADIENT_ACCUMULATION_STEPS") not in ("none", "1"):
        raise InputError("--gradient_accumulation_steps: leave it out; the recipe sets the responses or pairs of an update")
    if launcher_value("GRADIENT_CLIPPING") not in ("none", "1.0", "1"):
        raise InputError("--gradient_clipping: set max_grad_norm in the recipe")
    device = launcher_value("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE")
    if device not in ("none", "cpu"):
        raise InputError(f"--offload_optimizer_device {device}: not supported; use cpu or none")
    return {"offload_optimizer": {"device": "cpu"}} if device == "cpu" else {}


def launcher_value(setting: str) -> str:
    """A setting of the launcher; `none` where it is missing."""
    return os.environ.get(f"ACCELERATE_{setting}", "none").lower()


@contextlib.contextmanager
def exchanging() -> Iterator[None]:
    """As ``together`` of run.team, but an error of memory stays what it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names in torch that the engine uses
        try:
            yield
        except (RuntimeError, ConnectionError) as error:
            if is_out_of_memory(error):
                raise
            raise LostProcess from error


class _Trained(nn.Module):
    """The trained parameters as a module, which the engine expects."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)


class Zero:
    """The engine around one AdamW, until it is closed. All processes make its calls together."""

    def __init__(self, parameters: Sequence[nn.Parameter], adam: torch.optim.Optimizer, max_grad_norm: float) -> None:
        settings = settings_of_launcher()
        team()  # opens the connections that the engine takes over
        for parameter in parameters:  # peft freezes adapters that are not switched on, and the engine leaves those out
            parameter.requires_grad_(True)
        bucket = min(BUCKET, sum(parameter.numel() for parameter in parameters))
        config = {
            "train_micro_batch_size_per_gpu": 1,  # the engine's count, unused: the loops decide the rows of a step
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
            "zero_optimization": {
                "stage": 1, "overlap_comm": False, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket, **settings
            },
        }  # fmt: skip
        level = logging.root.manager.disable
        logging.disable(logging.INFO)  # pages of settings, from every process
        try:
            import deepspeed

            backend = torch.distributed.get_backend()
            deepspeed.init_distributed(backend, auto_mpi_discovery=False, dist_init_required=False)
            self.engine: Any = deepspeed.initialize(
                model=_Trained(parameters), optimizer=adam, config=config, dist_init_required=False
            )[0]
        finally:
            logging.disable(level)
        self.parameters, self.adam = list(parameters), self.engine.optimizer.optimizer

    def step(self, rate: float) -> float:
        """Add up the gradients of the processes, clip, update, clear; the gradient norm before clipping, infinite where there
        was no update because a gradient was not finite."""
        for parameter in self.parameters:
            # Parts are exchanged in one order, so every process needs all of them; the engine divides by their number.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.mul_(team().size)
        for group in self.adam.param_groups:
            group["lr"] = rate * group["factor"]
        with exchanging():
            with self.engine.coalesce_grad_reduction():
                pass  # at its end gradients are added up that were made before
            self.engine.step()
        torch.autograd.graph.increment_version(self.parameters)  # written where autograd does not look
        return float("inf") if self.engine.optimizer.overflow else float(self.engine.get_global_grad_norm())

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The whole moments of a parameter, in the memory of the main process; nothing elsewhere or before the first update."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self.adam.state:
            return {}
        whole_moments = {}
        for key in MOMENTS:
            with exchanging():
                whole = safe_get_full_optimizer_state(parameter, key)
            if team().is_main:
                whole_moments[key] = whole.cpu()
        return {**whole_moments, "step": next(iter(self.adam.state.values()))["step"].clone()} if whole_moments else {}

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

    def close(self) -> None:
        """Let go of the parameters, of their copy and of the moments; the engine hooks itself in where only this undoes it."""
        for parameter in self.parameters:
            parameter.grad = None
        self.engine.destroy()
        del self.engine, self.adam, self.parameters
