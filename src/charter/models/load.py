"""Load and save models: safetensors only, no remote code, one clear line for a folder that is not a model."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from charter.errors import InputError
from charter.models.architectures import ENCODERS, POOLED
from charter.models.attention import use_fast_attention
from charter.models.chat_template import PAIR_TEMPLATE, PLAIN_TEMPLATE, TRANSCRIPT_TEMPLATE, begins_with_bos, prepare_tokenizer
from charter.models.formats.quantize import is_quantized, keep_exact, loading_in_4_bits
from charter.models.formats.transformers_4 import add_names_of_transformers_4
from charter.models.marks import last_round
from charter.models.memory import keep_freed_memory
from charter.run.files import HEAD_CARD, folder_name, read_json, write_json
from charter.run.hashes import model_hash


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the progress bars and reports of transformers off the terminal."""
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    level = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger("transformers").setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()


def check_folder(path: str) -> None:
    """InputError if ``path`` is a folder that cannot be a safetensors model, or a path that does not exist."""
    folder = Path(path)
    if not folder.exists():
        if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
            raise InputError("no such model folder; write a folder, or OWNER/NAME for a model of the hub", file=path)
        return
    if not folder.is_dir():
        raise InputError("the path is a file; name the folder with config.json and the weights", file=path)
    if not (folder / "config.json").exists():
        raise InputError("config.json is missing; name the folder of a Hugging Face model", file=path)
    if not list(folder.glob("*.safetensors")):
        pickled = [file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in folder.glob(pattern)]
        if pickled:
            raise InputError(f"pickled weights ({pickled[0]}) can run code when loaded; save them as safetensors", file=path)
        raise InputError("*.safetensors weights are missing; name the folder with the weights", file=path)


def config_of(path: str) -> Any:
    """The configuration of a model, without code from its folder. InputError if it does not load."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"the model does not load: {first_line(error)}", file=path) from None


def kind_of(path: str) -> Literal["decoder", "encoder", "encoder-decoder"]:
    """The kind of the model of a folder; a folder with a tokenizer alone counts as a decoder's. InputError if its
    configuration does not load."""
    if Path(path).is_dir() and not (Path(path) / "config.json").exists():
        return "decoder"
    config = config_of(path)
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    return "encoder" if config.model_type in ENCODERS else "decoder"


TEMPLATES = {"decoder": TRANSCRIPT_TEMPLATE, "encoder-decoder": PLAIN_TEMPLATE, "encoder": PAIR_TEMPLATE}


def load_base(
    path: str,
    device: str = "cpu",
    *,
    attention: str = "auto",
    quantization: str | None = None,
    precision: str = "float32",
    **more: Any,
) -> Any:
    """A model for training: one that writes has its vocabulary projection, an encoder has no head. ``precision``: of products
    with 4-bit weights. ``more`` as of ``load_model``. InputError if a package is missing."""
    kind = kind_of(path)
    check_attention(attention, kind, device, precision)
    more |= {} if attention == "auto" else {"attn_implementation": attention}
    if quantization:
        more |= loading_in_4_bits(precision, device)
    if kind == "encoder":
        if config_of(path).model_type in POOLED:
            more["add_pooling_layer"] = False
        return load_model(path, device, kind="AutoModel", **more)
    return load_model(path, device, kind="AutoModelForCausalLM" if kind == "decoder" else "AutoModelForSeq2SeqLM", **more)


def check_attention(attention: str, kind: str, device: str, precision: str) -> None:
    """InputError if flash attention cannot run: transformers would fetch compiled code if the package is missing."""
    if attention != "flash_attention_2":
        return
    if importlib.util.find_spec("flash_attn") is None:
        raise InputError("needs the package flash-attn, which is missing; install it, or set attention: auto",
                         field="attention: flash_attention_2")  # fmt: skip
    if device != "cuda":
        raise InputError("needs a GPU; set attention: auto", field="attention: flash_attention_2")
    if precision == "float32":
        raise InputError("computes in 16 bits; set precision: bfloat16", field="attention: flash_attention_2")
    if kind != "decoder":
        raise InputError(
            f"works for decoders only, and this model is an {kind}; set attention: auto", field="attention: flash_attention_2"
        )


def marks_of(path: str) -> tuple[list[int], int | None]:
    """The ids that a model's files name as ends of a response (several with Llama 3 and Gemma) and as beginning of a text. The
    files count and not the classes, whose defaults are the ids of another model."""
    from transformers.utils import cached_file

    ids: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        file = cached_file(path, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
        values = read_json(Path(file)) if file else None
        if isinstance(values, dict):
            ids |= {key: values[key] for key in ("eos_token_id", "bos_token_id") if values.get(key) is not None}
    ends, bos_id = ids.get("eos_token_id", []), ids.get("bos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return [number for number in ends if isinstance(number, int)], bos_id if isinstance(bos_id, int) else None


def vocabulary_of(tokenizer: Any, rows: int) -> int:
    """Number of ids of the tokenizer: one more than the highest. A token for unknown text or BOS that is only the default of its
    class, and lies beyond the ``rows`` of the embedding, does not count."""
    unused = {tokenizer.unk_token, None if begins_with_bos(tokenizer) else tokenizer.bos_token} - {tokenizer.eos_token}
    known: dict[str, int] = tokenizer.get_vocab()
    return 1 + max(number for token, number in known.items() if number < rows or token not in unused)


def check_vocabulary(model: Any, tokenizer: Any, path: str, *, base: str | None = None) -> None:
    """InputError if the tokenizer has tokens for which the model has no embedding: they would fail when one comes up.
    ``base``: the model under the adapter of ``path``."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    known = vocabulary_of(tokenizer, rows)
    if known > rows:
        remedy = "call model.resize_token_embeddings(len(tokenizer)) and save again, or use the model's own tokenizer"
        if base is not None:
            remedy = f"name the base model that has them all with --base (now {base})"
        raise InputError(f"the tokenizer has {known} tokens and the model has embeddings for {rows}; {remedy}", file=path)


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model's folder, complete with end, pad and template (see ``prepare_tokenizer``)."""
    tokenizer = raw_tokenizer(path)
    ends, bos_id = marks_of(path)
    try:
        return prepare_tokenizer(tokenizer, template=TEMPLATES[kind_of(path)], ends=ends, bos_id=bos_id)
    except InputError as error:
        raise InputError(str(error), file=path) from None


def raw_tokenizer(path: str) -> Any:
    """The tokenizer of a folder, as stored."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the tokenizer does not load: {first_line(error)}", file=path) from None


def load_model(
    path: str,
    device: str = "cpu",
    *,
    kind: str = "AutoModelForCausalLM",
    dtype: Any = torch.float32,
    scores: bool = False,
    weights: Mapping[str, torch.Tensor] | None = None,
    **kwargs: Any,
) -> Any:
    """A model in ``dtype`` (`auto`: the stored one), in evaluation mode. ``kind`` names the transformers class. ``scores``: the
    model only scores, so its vocabulary projection may be missing. ``weights``: these in place of those of the folder.
    InputError if weights are missing: the loader would fill a missing head with random numbers."""
    import transformers

    check_folder(path)
    keep_freed_memory()
    try:
        with quiet_transformers():
            if weights is None:
                model, report = getattr(transformers, kind).from_pretrained(
                    path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **kwargs
                )
                missing = set(report["missing_keys"])
            else:
                config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
                model = getattr(transformers, kind).from_config(config, dtype=dtype, **kwargs)
                missing = put_weights(model, weights)
    except Exception as error:  # the loader raises whatever the file format underneath raises
        raise InputError(f"the model does not load: {first_line(error)}", file=path) from None
    if scores and (projection := model.get_output_embeddings()) is not None:
        missing -= {name for name, value in model.named_parameters() if value is projection.weight}
    if missing:
        raise InputError(f"weights are missing: {', '.join(sorted(missing)[:3])}; the folder is not a whole {kind}", file=path)
    if is_quantized(model):
        keep_exact(model)
    else:
        model = model.to(device)
    return use_fast_attention(model.eval()) if "attn_implementation" not in kwargs else model.eval()


def put_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> set[str]:
    """Put weights into a model by name; the names of the parameters that have none."""
    names = dict(model.named_parameters(remove_duplicate=False))
    shared = {id(names[name]) for name in weights if name in names}
    result = model.load_state_dict(weights, strict=False)
    return {name for name in result.missing_keys if name in names and id(names[name]) not in shared}


def load_classifier(path: str, device: str = "cpu") -> tuple[Any, Any]:
    """A sequence classifier and its tokenizer. InputError if its head is missing: it would be random."""
    model = load_model(path, device, kind="AutoModelForSequenceClassification")
    tokenizer = raw_tokenizer(path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token
        model.config.pad_token_id = tokenizer.pad_token_id
    check_vocabulary(model, tokenizer, path)
    return model, tokenizer


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the name of ``folder`` at the end, so that nobody sees it half-written."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        with quiet_transformers():
            yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def untied_if_they_differ(model: Any) -> Any:
    """The model, whose configuration ties its two embeddings no longer if they differ: a loader would lose one of them."""
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if output is not None and output.weight is not embedding.weight and not torch.equal(output.weight, embedding.weight):
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False
    return model


def save_model(
    model: Any, tokenizer: Any, folder: Path, *, shard_size: str = "50GB", extra: Mapping[str, Any] | None = None
) -> None:
    """Write a plain Hugging Face folder, which loads without remote code, even if the model once came with some, and in
    transformers 4. ``extra``: small JSON files by name."""
    for settings in (vars(model.config), tokenizer.init_kwargs):
        settings.pop("auto_map", None)
    with whole_folder(folder) as temporary:
        untied_if_they_differ(model).save_pretrained(temporary, max_shard_size=shard_size)
        tokenizer.save_pretrained(temporary)
        add_names_of_transformers_4(temporary)
        for name, value in (extra or {}).items():
            write_json(temporary / name, value)


def pick_device(setting: str) -> str:
    """`cuda`, `mps` or `cpu`; `auto` is a GPU of CUDA if there is one. InputError if that device is missing."""
    if setting == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but no GPU is visible; set device to cpu or auto")
    if setting == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("device is mps, but torch sees no GPU of a Mac; set device to cpu or auto")
        return setting
    return "cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu"


STAGE_OF = {"sft": "sft", "policy": "rl"}
"""The stage of a run that trains a model, by the name of the model."""


PEOPLE, OF_PERSON = "people", "person "
"""In a run: the folder with a folder for each person; and how the names of their models begin."""


def run_and_model(name: str) -> tuple[str, str]:
    """The run and the model of RUN:MODEL. Without a colon the run is empty. The name of a person may contain colons."""
    run, mark, person = name.partition(f":{OF_PERSON}")
    if mark:
        return run, OF_PERSON + person
    run, _, model = name.rpartition(":")
    return run, model


def people_of(run: Path) -> list[str]:
    """The people of a run who have a model."""
    cards = (read_json(file) for file in sorted((run / PEOPLE).glob(f"*/{HEAD_CARD}")))
    return [card["rater"] for card in cards if "adapter" in card]


def model_of_person(run: Path, person: str) -> str:
    """Folder of the adapter of a person. InputError if it is missing, or the model under it was trained again since."""
    folder = run / PEOPLE / folder_name(person)
    card = read_json(folder / HEAD_CARD)
    if not isinstance(card, dict) or "adapter" not in card:
        raise InputError(f"no model of {person!r} here; make one with charter person {run} --name NAME --votes FILE", file=run)
    under = card.get("model", "policy")
    if card["policy"] != model_hash(model_of_run(run, under)):
        raise InputError(f"the {under} of the run changed since; run charter person again", file=folder)
    return str(folder / card["adapter"])


def model_of_run(run: Path, model: str) -> str:
    """Folder (or hub name) of the run's ``base``, ``sft`` or ``policy``, or of the adapter of a ``person NAME``. InputError if
    it is missing."""
    if model.startswith(OF_PERSON):
        return model_of_person(run, model.removeprefix(OF_PERSON))
    if model not in ("base", *STAGE_OF):
        raise InputError(f"--model: unknown model {model!r}; use base, sft or policy")
    if not run.is_dir():
        raise InputError("no such run folder; make one with charter run RECIPE --out FOLDER", file=run)
    if model == "base":
        report = read_json(run / "report.json")
        recipe = report.get("recipe") if isinstance(report, dict) else None
        base = recipe.get("model") if isinstance(recipe, dict) else None
        if not isinstance(base, str):
            raise InputError("report.json, which names the base model, is missing; charter run RECIPE --out writes it", file=run)
        check_folder(base)
        return base
    stage = STAGE_OF[model]
    folder = run / last_round(run, stage) / "model"
    if not folder.is_dir():
        raise InputError(f"the {model} model is missing; train it with charter {stage} RECIPE --out {run}", file=folder)
    return str(folder)
