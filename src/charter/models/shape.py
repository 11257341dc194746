"""Models as config.json and the headers of their weight files describe them; no weight is read."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from charter.errors import InputError
from charter.models.formats.quantize import BYTES as QUANTIZED_BYTES
from charter.models.llama.weights import LLAMA_LIKE
from charter.models.load import check_folder, first_line
from charter.models.logprobs import CAPS, SCALES
from charter.recipe.settings import LoRASettings

FLOAT = 4  # bytes: weights, gradients and moments are float32 whatever the precision of the matrix products


@dataclass(frozen=True)
class Shape:
    """What config.json and the headers of the weight files say of a model."""

    tensors: dict[str, tuple[int, ...]]
    layers: int
    hidden: int
    inner: int
    kv_width: int
    vocabulary: int
    positions: int | None
    heads: int = 1
    fused: bool = False
    """Whether Charter computes its pass itself, on a GPU for sampling alone; activations then have the precision of the run."""
    quantized: bool = False
    """Whether its linear layers are loaded in 4 bits."""
    plain: bool = False
    """Whether its logits are one product with one matrix, so that they are computed in blocks."""

    @cached_property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors.values())

    @cached_property
    def linear(self) -> list[tuple[int, ...]]:
        """Shapes of the linear layers but the output projection."""
        words = ("embed", "wte", "wpe", "lm_head", "shared", "relative_attention_bias")
        return [s for name, s in self.tensors.items() if len(s) == 2 and not any(word in name for word in words)]

    @property
    def bytes(self) -> float:
        """What its frozen weights take."""
        rounded = sum(math.prod(shape) for shape in self.linear) if self.quantized else 0
        return (self.parameters - rounded) * FLOAT + rounded * QUANTIZED_BYTES

    def adapter(self, lora: LoRASettings | None) -> int:
        """Parameters of one LoRA adapter on every linear layer but the output projection: rank x (in + out) each."""
        return sum(lora.rank * sum(shape) for shape in self.linear) if lora else 0


def read_shape(name: str) -> Shape:
    """The shape of a model folder, or of a hub model that was downloaded before. No weight is read. InputError if the model is
    missing or a file is invalid."""
    check_folder(name)
    folder = Path(name) if Path(name).exists() else downloaded(name)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"config.json does not load: {first_line(error)}", file=folder) from None
    heads = int(getattr(config, "num_attention_heads", 0) or 1)
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    if not hidden or not layers:
        raise InputError(
            "config.json has no hidden_size or no num_hidden_layers; use the folder of a language model", file=folder
        )
    head = int(getattr(config, "head_dim", None) or hidden // heads)
    tensors: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= read_header(file)
    return Shape(
        tensors=tensors,
        layers=layers,
        hidden=hidden,
        inner=int(getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden),
        kv_width=head * int(getattr(config, "num_key_value_heads", None) or heads),
        vocabulary=int(config.vocab_size),
        positions=getattr(config, "max_position_embeddings", None),
        heads=heads,
        fused=config.model_type in LLAMA_LIKE and config.hidden_act == "silu",
        plain=not config.is_encoder_decoder
        and not any(name.endswith("head.bias") for name in tensors)
        and all(getattr(config, name, None) is None for name in (*SCALES, *CAPS)),
    )


def read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file: eight bytes of length, then JSON."""
    try:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 100 * 2**20:
                raise ValueError("header too long")
            header = json.loads(stream.read(length))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise InputError("the header is not one of a safetensors file; save or download the model again", file=file) from None


def downloaded(name: str) -> Path:
    """The local copy of a hub model."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:  # the hub client raises whatever its cache and its checks raise
        raise InputError(f"the model is not downloaded, so its size is unknown; run `hf download {name}`", file=name) from None
