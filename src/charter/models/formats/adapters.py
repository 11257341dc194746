"""LoRA adapters: put on a model, written as PEFT's own folders, read, and merged into a plain Hugging Face model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from charter.errors import InputError
from charter.models.architectures import is_encoder, is_encoder_decoder
from charter.models.formats.precision import DTYPES
from charter.models.formats.quantize import STACK, import_peft
from charter.models.load import (
    check_folder,
    check_vocabulary,
    first_line,
    kind_of,
    load_model,
    quiet_transformers,
    raw_tokenizer,
    save_model,
    untied_if_they_differ,
    whole_folder,
)
from charter.recipe.settings import LoRASettings
from charter.run.files import read_json

CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LANGUAGE_MODELS = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM")


def add_adapter(model: Any, adapters: Any, name: str, lora: LoRASettings, start_from: str | None = None) -> Any:
    """The model with one more adapter, under ``name``, on all its linear layers. ``adapters``: the peft model around it, None
    before the first. The new adapter starts as no change, or as the adapter ``start_from``, with its rank and scale."""
    peft = import_peft()
    like = adapters.peft_config[start_from] if start_from else None
    config = peft.LoraConfig(
        r=like.r if like else lora.rank,
        lora_alpha=like.lora_alpha if like else lora.alpha,
        target_modules="all-linear",
        task_type="SEQ_2_SEQ_LM" if is_encoder_decoder(model) else "FEATURE_EXTRACTION" if is_encoder(model) else "CAUSAL_LM",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),  # GPT-2 stores them transposed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls transformers by a name of before
        if adapters is None:
            adapters = peft.get_peft_model(model, config, adapter_name=name)
        else:
            adapters.add_adapter(name, config)
    adapters.eval()
    if start_from:
        state = dict(adapters.named_parameters())
        with torch.no_grad():
            for key, parameter in state.items():
                if f".{name}." in key:
                    parameter.copy_(state[key.replace(f".{name}.", f".{start_from}.")])
    return adapters


def save_adapter(adapters: Any, role: str, tokenizer: Any, folder: Path, base: str) -> None:
    """Write one adapter of a trunk as a folder that peft loads onto ``base``, with its tokenizer and template."""
    from safetensors.torch import save_file

    config = copy.copy(adapters.peft_config[role])
    config.base_model_name_or_path, config.inference_mode = base, True
    config.target_modules = sorted(config.target_modules)  # a set, whose order changes from process to process
    state = import_peft().get_peft_model_state_dict(adapters, adapter_name=role, save_embedding_layers=False)
    with whole_folder(folder) as temporary:
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(tensors, temporary / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def check_adapter(folder: Path) -> dict[str, Any]:
    """The configuration of an adapter folder. InputError if Charter cannot merge the adapter."""
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise InputError("not an adapter configuration", file=folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise InputError(f"an adapter of type {config.get('peft_type')}; Charter merges LORA only", file=folder / CONFIG)
    if config.get("task_type") not in LANGUAGE_MODELS:
        raise InputError(f"an adapter for {config['task_type']}; Charter merges adapters of language models only",
                         file=folder / CONFIG)  # fmt: skip
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").exists()
        remedy = "; its pickled weights can run code when loaded, save them as safetensors" if pickled else ""
        raise InputError(f"{ADAPTER_WEIGHTS} is missing{remedy}", file=folder)
    return config


def base_of(folder: Path) -> str:
    """The model that an adapter folder was trained on: a folder, or a name on a hub. InputError if the folder is not an
    adapter that Charter can merge, or names no base."""
    base = check_adapter(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError("the base model is missing; name it with --base", file=folder / CONFIG)
    return moved_along(folder, base)


def moved_along(folder: Path, base: str) -> str:
    """The base of an adapter in ``folder``: in a run folder that was moved, the fine-tuned model moved along."""
    if Path(base).exists():
        return base
    beside = (above / Path(base).parent.name / Path(base).name for above in list(folder.parents)[1:4])
    return str(next((place for place in beside if (place / "config.json").is_file()), base))


def stack_of(path: str) -> tuple[str, list[Path]]:
    """The model whose weights are rounded to 4 bits, and the adapters on top of it, in order. A folder that was trained in 4 bits
    has the model and the adapters of its training; any other folder has itself and none."""
    card = read_json(Path(path) / STACK)
    if card is None:
        return path, []
    folder = Path(path).with_name("adapter")
    if not (folder / CONFIG).is_file():
        raise InputError(f"this model was trained in 4 bits and needs its adapter, which is missing in {folder}", file=path)
    base, under = stack_of(base_of(folder))
    return base, [*under, folder]


def merged_weights(model: Any, adapters: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each weight of a model under the name it has without adapters, with what the named adapters add to it."""
    for name, parameter in model.named_parameters():
        place, inside, leaf = name.partition(".base_layer.")
        if "lora_" in name:
            continue
        weight = parameter.detach()
        if inside and leaf == "weight":
            layer = model.get_submodule(place)
            for adapter in adapters:
                if adapter in layer.lora_A:
                    weight = weight + layer.get_delta_weight(adapter).detach()
        yield (f"{place}.{leaf}" if inside else name), weight


def put_on(model: Any, folder: Path, name: str = "default") -> Any:
    """The model, which may have adapters already, with the adapter of a folder around it. InputError if the folder lacks
    weights that its configuration names: peft would leave these at zero."""
    from safetensors import safe_open

    peft = import_peft()
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the cases that peft warns of are checked below
            if isinstance(model, peft.PeftModel):
                wrapped, model = model, model.get_base_model()
                wrapped.load_adapter(folder, adapter_name=name)
            else:
                wrapped = peft.PeftModel.from_pretrained(model, folder, adapter_name=name)
    except Exception as error:  # peft raises whatever the shapes and files underneath raise
        raise InputError(f"the adapter does not fit its base model: {first_line(error)}", file=folder) from None
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        stored = set(file.keys())
    needed = set(peft.get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False))
    if missing := sorted(needed - stored):
        raise InputError(f"adapter weights are missing: {', '.join(missing[:3])}", file=folder)
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    weights = [getattr(getattr(layer, "base_layer", layer), "weight", None) for layer in (output, embedding)]
    if weights[0] is weights[1] and (hasattr(output, "base_layer") or hasattr(embedding, "base_layer")):
        raise InputError("the adapter changes an embedding that its base model also writes with; merging would change both",
                         file=folder)  # fmt: skip
    return wrapped.eval()


def resize_for(model: Any, folder: Path) -> None:
    """Give a base model the rows for tokens that were added before an adapter was trained: the adapter stores the embeddings
    whole, and peft puts them into a model of the same size only. InputError if the folder stores one of the two alone."""
    from safetensors import safe_open

    layers = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): f"base_model.model.{name}.weight" for name, module in model.named_modules()}
    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
        keys = set(file.keys())
        stored = [file.get_slice(key).get_shape()[0] if (key := names[id(layer)]) in keys else 0 for layer in layers]
    rows = int(layers[0].weight.shape[0])
    if max(stored) <= rows:
        return
    if layers[0].weight is not layers[1].weight and stored[0] != stored[1]:
        raise InputError(
            f"the adapter stores {stored[0]} rows of the input embedding and {stored[1]} of the output projection, and its base "
            f"model has {rows}; name the resized base model with --base",
            file=folder,
        )
    model.resize_token_embeddings(max(stored), mean_resizing=False)


def merge_onto(model: Any, folder: Path) -> Any:
    """The model with the adapter of a folder added to its weights. Embeddings that the adapter made differ are untied."""
    resize_for(model, folder)
    return untied_if_they_differ(added(put_on(model, folder)))


def added(adapted: Any, adapter: str | None = None) -> Any:
    """The model with its adapter, or a named one, added to its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on embeddings that differ, which are untied when the model is saved
        return adapted.merge_and_unload(adapter_names=None if adapter is None else [adapter])


def merge_folder(
    source: Path, out: Path, *, base: str | None = None, dtype: str | None = None, shard_size: str = "5GB"
) -> dict[str, Any]:
    """Write a model folder, or an adapter folder merged into its base, as a plain Hugging Face model: config.json without remote
    code or quantization, safetensors of at most ``shard_size``, tokenizer, chat template, generation settings.

    ``dtype``: of the written weights, by default the stored one; an adapter is added in float32 if ``dtype`` is float32, else in
    the dtype of the base. Returns a summary of what was written. InputError if source or base does not load, or a weight does
    not fit ``dtype``.
    """
    adapter = source if is_adapter(source) else None
    folder = str(source)
    if adapter:
        check_adapter(adapter)
        folder = base or base_of(adapter)
    check_folder(folder)
    kind = kind_of(folder)
    if kind == "encoder":
        raise InputError("an encoder; Charter merges models that write only", file=folder)
    model = load_model(
        folder,
        kind="AutoModelForCausalLM" if kind == "decoder" else "AutoModelForSeq2SeqLM",
        dtype=torch.float32 if dtype == "float32" else "auto",
    )
    tokenizer = raw_tokenizer(str(adapter) if adapter and (adapter / "tokenizer_config.json").is_file() else folder)
    if adapter:
        model = merge_onto(model, adapter)
    check_vocabulary(model, tokenizer, str(adapter or folder), base=folder if adapter else None)
    written = write_whole(model, tokenizer, source, out, dtype=dtype, shard_size=shard_size)
    return written | {"base": folder if adapter else None, "adapter": str(adapter) if adapter else None}


def write_whole(model: Any, tokenizer: Any, source: Path, out: Path, *, dtype: str | None, shard_size: str) -> dict[str, Any]:
    """Write a model made from ``source`` to ``out``; returns a summary. InputError if a weight does not fit ``dtype``."""
    if dtype:
        model = model.to(DTYPES[dtype])
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"{name} is not finite in {weight.dtype}; choose another --dtype", file=source)
    save_model(model, tokenizer, out, shard_size=shard_size)
    written = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {
        "source": str(source), "base": None, "adapter": None, "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": written, "files": sorted(file.name for file in out.glob("*.safetensors")), "out": str(out),
    }  # fmt: skip
