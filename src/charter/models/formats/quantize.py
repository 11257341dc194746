"""Weights of 4 bits (QLoRA, Dettmers et al. 2023): NormalFloat in blocks of 64, their scales in 8 bits, through bitsandbytes.

Embeddings, norms and the output projection are not rounded. A model that was trained on 4-bit weights is these weights plus
adapters: rounded to 4 bits a second time it would lose most of its training, since an update is smaller than a step of the grid.
So a run also saves the adapters apart (``STACK``), and a run that resumes puts them on the same 4-bit weights.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from charter.errors import InputError
from charter.models.formats.precision import DTYPES

BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight: 4 bits, a scale of 8 bits for 64 weights, one of 32 for 256 scales
STACK = "charter_adapters.json"


@contextlib.contextmanager
def without_hub_kernels() -> Iterator[None]:
    """On CPUs with bfloat16, importing bitsandbytes fetches a compiled kernel from a hub if the package `kernels` is installed.
    Charter does not run code from the network."""
    kernels = sys.modules.get("kernels")
    level = logging.getLogger("bitsandbytes").level
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger("bitsandbytes").setLevel(level)
        sys.modules.pop("kernels")
        if kernels is not None:
            sys.modules["kernels"] = kernels


def import_peft() -> Any:
    """Import peft, which imports bitsandbytes if that is installed."""
    with without_hub_kernels():
        import peft
    return peft


def check_bitsandbytes() -> None:
    """InputError if bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("quantization: nf4 needs bitsandbytes; install it with: pip install 'charter-align[qlora]'")


def loading_in_4_bits(precision: str, device: str) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` for a model in nf4 with products in ``precision``. InputError if bitsandbytes is
    missing, and on a Mac's GPU, for which it has no kernels."""
    check_bitsandbytes()
    if device == "mps":
        raise InputError("has no kernels for mps; set device: cpu, or leave quantization out", field="quantization: nf4")
    import_peft()
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=DTYPES[precision]
    )
    return {"quantization_config": config, "device_map": {"": device}}


def is_quantized(model: Any) -> bool:
    return bool(getattr(model, "is_loaded_in_4bit", False))


def keep_exact(model: Any) -> None:
    """Keep bitsandbytes from rearranging weights for its CPU kernel, which rounds to bfloat16 whatever the precision and has no
    derivative: adapters below it would silently learn nothing."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def size_of(parameter: Tensor) -> int:
    """Numbers in a parameter; of a 4-bit parameter the numbers that it represents."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def dense_copy(model: Any, dtype: torch.dtype) -> Any:
    """The trained model as a plain one: its 4-bit weights written out and the active adapters added, in ``dtype`` on the CPU. One
    weight at a time is on the device."""
    from bitsandbytes.functional import dequantize_4bit

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        dense = type(model)(config)
    state: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if "lora_" in name:
                continue
            place, _, leaf = name.replace(".base_layer", "").rpartition(".")
            layer = model.get_submodule(place)
            if (quantized := getattr(weight, "quant_state", None)) is not None:
                weight = dequantize_4bit(weight.data, quantized)
            if leaf == "weight" and hasattr(layer, "get_delta_weight"):
                for adapter in layer.active_adapters:
                    if adapter in layer.lora_A:
                        weight = weight.float() + layer.get_delta_weight(adapter).float()
            if quantized is not None and type(dense.get_submodule(place)).__name__ == "Conv1D":
                weight = weight.t()  # GPT-2 stores them transposed
            cast = weight.to(dtype) if weight.is_floating_point() else weight
            state[f"{place}.{leaf}" if place else leaf] = cast.cpu().contiguous()
    dense.load_state_dict(state, strict=False, assign=True)
    dense.tie_weights()
    dense.generation_config = getattr(model, "generation_config", None)
    dense.config.dtype = dtype
    return dense.eval()
