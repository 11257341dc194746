"""LoRA adapters on disk: PEFT's own folders, written, read, and merged into a plain Hugging Face model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from charter.errors import InputError
from charter.models.load import (
    check_folder,
    check_vocabulary,
    first_line,
    kind_of,
    load_model,
    quiet_transformers,
    raw_tokenizer,
    save_model,
    whole_folder,
)
from charter.models.precision import DTYPES
from charter.models.quantize import STACK, import_peft
from charter.run.files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LANGUAGE_MODELS = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM")


def save_adapter(adapters: Any, role: str, tokenizer: Any, folder: Path, base: str) -> None:
    """Write one adapter of a trunk as a folder that peft loads onto ``base``, its tokenizer and template beside it."""
    from safetensors.torch import save_file

    config = copy.copy(adapters.peft_config[role])
    config.base_model_name_or_path, config.inference_mode = base, True
    config.target_modules = sorted(config.target_modules)  # a set, whose order changes from process to process
    state = import_peft().get_peft_model_state_dict(adapters, adapter_name=role, save_embedding_layers=False)
    with whole_folder(folder) as temporary:
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The model that an adapter folder was trained on: a folder, or a name on a hub. InputError where it cannot be merged."""
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise InputError("is no adapter configuration", file=folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise InputError(f"is an adapter of type {config.get('peft_type')}; LORA alone can be merged", file=folder / CONFIG)
    if config.get("task_type") not in LANGUAGE_MODELS:
        raise InputError(f"is an adapter for {config['task_type']}, and only language models are merged", file=folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        pickled = ", which can run code when loaded" if (folder / "adapter_model.bin").exists() else ""
        raise InputError(f"holds no {WEIGHTS}{' but pickled weights' + pickled if pickled else ''}", file=folder)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError("names no base model; give it with --base", file=folder / CONFIG)
    # A run folder that was moved: its fine-tuned model stands where it stood, seen from the adapter.
    beside = folder.parent.parent / Path(base).parent.name / Path(base).name
    return str(beside) if not Path(base).exists() and (beside / "config.json").is_file() else base


def stack_of(path: str) -> tuple[str, list[Path]]:
    """The model whose weights are to be rounded, and the adapters that go on top in order: of a folder that was trained in 4 bits
    what it was trained on, of any other itself and none."""
    card = read_json(Path(path) / STACK)
    if card is None:
        return path, []
    folder = Path(path).with_name("adapter")
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"was trained in 4 bits, and its adapter is not beside it in {folder}", file=path)
    base, under = stack_of(base_of(folder))
    return base, [*under, folder]


def merged_weights(model: Any, adapters: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each weight of a model under the name it has without adapters, with what the named adapters add to it."""
    for name, parameter in model.named_parameters():
        place, inside, rest = name.partition(".base_layer.")
        if "lora_" in name:
            continue
        weight = parameter.detach()
        if inside and rest == "weight":
            layer = model.get_submodule(place)
            for adapter in adapters:
                if adapter in layer.lora_A:
                    weight = weight + layer.get_delta_weight(adapter).detach()
        yield (f"{place}.{rest}" if inside else name), weight


def put_on(model: Any, folder: Path, name: str = "default") -> Any:
    """The model, or one with adapters already, with the adapter of a folder around it. InputError where the adapter's weights are
    not those that its configuration says: peft would leave the rest at zero."""
    from safetensors import safe_open

    peft = import_peft()

    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what peft warns of is looked at below
            if isinstance(model, peft.PeftModel):
                wrapped, model = model, model.get_base_model()
                wrapped.load_adapter(folder, adapter_name=name)
            else:
                wrapped = peft.PeftModel.from_pretrained(model, folder, adapter_name=name)
    except Exception as error:  # peft raises whatever the shapes and files underneath raise
        raise InputError(f"the adapter does not fit its base model: {first_line(error)}", file=folder) from None
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        stored = set(file.keys())
    wanted = set(peft.get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False))
    if missing := sorted(wanted - stored):
        raise InputError(f"adapter weights are missing: {', '.join(missing[:3])}", file=folder)
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    weights = [getattr(getattr(layer, "base_layer", layer), "weight", None) for layer in (output, embedding)]
    if weights[0] is weights[1] and (hasattr(output, "base_layer") or hasattr(embedding, "base_layer")):
        raise InputError("adapts an embedding that its base model also writes with: merging would change both", file=folder)
    return wrapped.eval()


def merge_folder(
    source: Path, out: Path, *, base: str | None = None, dtype: str | None = None, shard_size: str = "5GB"
) -> dict[str, Any]:
    """Write a model folder, or an adapter folder merged into its base, as a plain Hugging Face model: config.json without remote
    code or quantization, safetensors of at most ``shard_size``, tokenizer, chat template, generation settings.

    ``dtype`` of the weights is what it was unless given; an adapter is added in float32 or what the base is stored in, whichever
    is asked for. Returns what was written. InputError where source or base does not load or a weight does not fit ``dtype``.
    """
    adapter = source if is_adapter(source) else None
    folder = (base or base_of(source)) if adapter else str(source)
    if adapter:
        base_of(adapter)  # also where another base is named: its type and its weights are looked at
    check_folder(folder)
    kind = kind_of(folder)
    if kind == "encoder":
        raise InputError("is an encoder, and only models that write are merged", file=folder)
    model = load_model(
        folder,
        kind="AutoModelForCausalLM" if kind == "decoder" else "AutoModelForSeq2SeqLM",
        dtype=torch.float32 if dtype == "float32" else "auto",
    )
    tokenizer = raw_tokenizer(str(adapter) if adapter and (adapter / "tokenizer_config.json").is_file() else folder)
    check_vocabulary(model, tokenizer, str(adapter or folder))
    if adapter:
        model = put_on(model, adapter).merge_and_unload()
    if dtype:
        model = model.to(DTYPES[dtype])
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"{name} is not finite in {weight.dtype}; choose another --dtype", file=source)
    save_model(model, tokenizer, out, shard_size=shard_size)
    written = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {
        "source": str(source), "base": folder if adapter else None, "adapter": str(adapter) if adapter else None,
        "parameters": sum(p.numel() for p in model.parameters()), "dtype": written,
        "files": sorted(file.name for file in out.glob("*.safetensors")), "out": str(out),
    }  # fmt: skip
