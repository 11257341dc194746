"""Merged models are plain folders with the same log-probabilities: from peft's adapters, from runs, in other dtypes."""

import json
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from charter.commands.app import run_command
from charter.models.formats.transformers_4 import old_rope
from charter.pipeline import run_recipe
from charter.recipe.files import load_recipe
from conftest import save_random_model

IDS = torch.tensor([[2, 70, 71, 72, 0, 3, 80, 81, 82, 0]])


def logprobs(model):
    more = {"decoder_input_ids": IDS[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=IDS, **more).logits.float(), dim=-1)


def auto(architecture):
    return AutoModelForSeq2SeqLM if architecture == "t5" else AutoModelForCausalLM


def save_adapter(folder, base, architecture):
    """A random adapter as peft trains and saves it; the model it makes of the base."""
    task = "SEQ_2_SEQ_LM" if architecture == "t5" else "CAUSAL_LM"
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=task, init_lora_weights=False,
                        fan_in_fan_out=architecture == "gpt2")  # fmt: skip
    torch.manual_seed(1)
    model = get_peft_model(auto(architecture).from_pretrained(base), config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("architecture", ["llama", "llama3", "gpt2", "t5"])
def test_an_adapter_is_merged_into_a_folder_that_loads_by_itself(tmp_path, architecture):
    base = save_random_model(tmp_path / "base", architecture)
    generation = json.loads((base / "generation_config.json").read_text()) | {"temperature": 0.6, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(generation))
    expected = logprobs(save_adapter(tmp_path / "adapter", base, architecture))
    out = tmp_path / "deep/merged"
    assert run_command(["model", "merge", str(tmp_path / "adapter"), "--out", str(out)]) == 0
    model = auto(architecture).from_pretrained(out)
    torch.testing.assert_close(logprobs(model), expected, rtol=0, atol=1e-4)
    assert model.generation_config.temperature == 0.6
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert not {"auto_map", "quantization_config", "_attn_implementation", "attn_implementation"} & config.keys()
    assert {"model.safetensors", "tokenizer.json", "generation_config.json"} <= {file.name for file in out.iterdir()}
    assert [file.name for file in out.parent.iterdir()] == ["merged"]  # nothing half-written is left


@pytest.mark.parametrize(
    ("family", "rope", "old"),
    [
        ("gpt2", None, {}),
        ("phi", {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.4},
         {"rope_theta": 7.0, "partial_rotary_factor": 0.4}),
        ("gpt_neox", {"rope_type": "default", "rope_theta": 7.0, "partial_rotary_factor": 0.4},
         {"rope_theta": 7.0, "partial_rotary_factor": 0.4, "rotary_emb_base": 7.0, "rotary_pct": 0.4}),
        ("llama", {"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0},
         {"rope_theta": 7.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("gemma3_text", {"full_attention": {"rope_type": "linear", "rope_theta": 7.0, "factor": 8.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 5.0}},
         {"rope_theta": 7.0, "rope_local_base_freq": 5.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ],
)  # fmt: skip
def test_rotary_positions_by_the_names_of_transformers_4(family, rope, old):
    assert old_rope(rope, family) == old


@pytest.mark.parametrize("architecture", ["llama", "llama3"])
def test_a_merged_folder_has_the_names_of_transformers_4_too(tmp_path, architecture):
    base = save_random_model(tmp_path / "base", architecture)
    settings = json.loads((base / "config.json").read_text())
    settings["rope_parameters"]["rope_theta"] = 123456.0
    (base / "config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.save_pretrained(base)
    save_adapter(tmp_path / "adapter", base, architecture)
    out = tmp_path / "merged"
    assert run_command(["model", "merge", str(tmp_path / "adapter"), "--out", str(out)]) == 0
    config, named = (json.loads((out / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert config["rope_theta"] == 123456.0
    other = {key: value for key, value in settings["rope_parameters"].items() if key != "rope_theta"}
    assert config.get("rope_scaling", {"rope_type": "default"}) == other
    assert (named["tokenizer_class"], named["additional_special_tokens"]) == ("PreTrainedTokenizerFast", ["<|user|>"])
    assert "extra_special_tokens" not in named
    assert named["model_input_names"] == tokenizer.model_input_names
    again = AutoTokenizer.from_pretrained(out)  # transformers 5 reads the same from both names
    assert again("<|user|>Hello.")["input_ids"] == tokenizer("<|user|>Hello.")["input_ids"]
    assert again.extra_special_tokens == tokenizer.extra_special_tokens
    assert AutoModelForCausalLM.from_pretrained(out).config.rope_parameters == settings["rope_parameters"]


@pytest.mark.parametrize(("dtype", "near"), [("bfloat16", 0.05), ("float16", 0.005), ("float32", 1e-4)])
def test_a_dtype_changes_the_numbers_by_its_rounding(tmp_path, dtype, near):
    base = save_random_model(tmp_path / "base", "llama")
    expected = logprobs(save_adapter(tmp_path / "adapter", base, "llama"))
    out = tmp_path / "merged"
    words = ["model", "merge", str(tmp_path / "adapter"), "--out", str(out), "--dtype", dtype, "--shard-size", "1MB"]
    assert run_command(words) == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    assert str(model.dtype) == f"torch.{dtype}"
    torch.testing.assert_close(logprobs(model.float()), expected, rtol=0, atol=near)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_weights_are_cut_into_files_with_an_index(tmp_path):
    base = save_random_model(tmp_path / "base", "llama")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(20_000)
    model.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = logprobs(model)
    assert run_command(["model", "merge", str(base), "--out", str(tmp_path / "out"), "--shard-size", "1MB"]) == 0
    assert (tmp_path / "out/model.safetensors.index.json").is_file()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    torch.testing.assert_close(logprobs(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


def test_a_run_leaves_adapters_that_peft_loads_and_models_to_merge(tmp_path, write_recipe, random_llama, capsys):
    lora = {"lora": {"rank": 4}}
    recipe = write_recipe(
        random_llama, sft={**lora, "learning_rate": 0.01}, rl={**lora, "steps": 1, "max_new_tokens": 4}, reward_model=lora,
        revise={"rounds": 1, "prompts": 6, "max_new_tokens": 4}, feedback={"prompts": 12, "max_new_tokens": 4},
    )  # fmt: skip
    run = tmp_path / "run"
    run_recipe(load_recipe(recipe), run, until="rl", quiet=True)
    for stage, base in (("sft", str(random_llama)), ("rl", str(run / "sft/model"))):
        config = json.loads((run / stage / "adapter/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == base
        assert config["target_modules"] == sorted(config["target_modules"])
        plain = AutoModelForCausalLM.from_pretrained(run / stage / "model")
        with_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / stage / "adapter")
        torch.testing.assert_close(logprobs(with_peft), logprobs(plain), rtol=0, atol=1e-5)
    moved = tmp_path / "moved"
    shutil.move(run, moved)
    for source, same in (("", "rl"), ("sft", "sft"), ("rl/model", "rl"), ("rl/adapter", "rl")):
        out = tmp_path / f"out-{source.replace('/', '-')}"
        capsys.readouterr()
        assert run_command(["model", "merge", str(moved / source), "--out", str(out), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["dtype"] == "float32"
        expected = logprobs(AutoModelForCausalLM.from_pretrained(moved / same / "model"))
        torch.testing.assert_close(logprobs(AutoModelForCausalLM.from_pretrained(out)), expected, rtol=0, atol=1e-5)
        assert AutoTokenizer.from_pretrained(out).chat_template


def test_what_cannot_be_merged_is_one_line(tmp_path, capsys):
    base = save_random_model(tmp_path / "base", "llama")
    save_adapter(tmp_path / "adapter", base, "llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")

    def error(*words, change=None):
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "adapter", folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        for key, value in (change or {}).items():
            config[key] = value
        (folder / "adapter_config.json").write_text(json.dumps(config))
        out = ["--out", str(tmp_path / "out")]
        assert run_command(["model", "merge", *(words or [str(folder)]), *([] if "--out" in words else out)]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "no such folder" in error(str(tmp_path / "nothing"))
    assert "not a model, a LoRA adapter or a run" in error(str(tmp_path / "full"))
    assert "already" in error(str(base), "--out", str(tmp_path / "full"))
    assert "unknown dtype 'int8'" in error(str(base), "--dtype", "int8")
    assert "invalid size '5'" in error(str(base), "--shard-size", "5")
    assert "--base" in error(str(base), "--base", str(base))
    assert "IA3" in error(change={"peft_type": "IA3"})
    assert "SEQ_CLS" in error(change={"task_type": "SEQ_CLS"})
    assert "name it with --base" in error(change={"base_model_name_or_path": None})
    assert "no such model folder" in error(change={"base_model_name_or_path": "/no/where"})
    assert "does not fit" in error(change={"r": 5})
    for module, words in (("q_proj", "weights are missing: base_model.model.model.layers.0"), ("lm_head", "change both")):
        config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=[module])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / module)
        if module == "q_proj":
            file = tmp_path / module / "adapter_model.safetensors"
            save_file(dict(list(load_file(file).items())[1:]), file)
        assert words in error(str(tmp_path / module))
    other = save_random_model(tmp_path / "other", "gpt2")
    assert "does not fit" in error(str(tmp_path / "adapter"), "--base", str(other))


def test_weights_that_a_dtype_cannot_hold_are_refused(tmp_path, capsys):
    base = save_random_model(tmp_path / "base", "llama")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight[0] = 1e6
    model.save_pretrained(base)
    words = ["model", "merge", str(base), "--out", str(tmp_path / "out"), "--dtype", "float16"]
    assert run_command(words) == 2
    assert "model.norm.weight is not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_once_came_with_code_is_written_without(tmp_path):
    base = save_random_model(tmp_path / "base", "llama")
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**values, "auto_map": {"AutoModelForCausalLM": "code.Model"}}))
    assert run_command(["model", "merge", str(base), "--out", str(tmp_path / "out")]) == 0
    assert all("auto_map" not in file.read_text() for file in (tmp_path / "out").glob("*.json"))


ADDED = ["<|tool|>", "<|plan|>", "<|note|>"]


def with_added_tokens(folder, base, **settings):
    """An adapter that peft trained after three tokens were added to the base; its folder, and the model it makes."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ADDED})
    torch.manual_seed(2)
    model.resize_token_embeddings(len(tokenizer))
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(model, config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("architecture", ["llama", "llama3"])
@pytest.mark.parametrize("modules", [None, ["embed_tokens", "lm_head"]], ids=["resized", "modules_to_save"])
def test_an_adapter_with_embeddings_for_added_tokens_is_merged(tmp_path, architecture, modules):
    base = save_random_model(tmp_path / "base", architecture)
    model = with_added_tokens(tmp_path / "adapter", base, modules_to_save=modules)
    size = len(AutoTokenizer.from_pretrained(tmp_path / "adapter"))
    ids = torch.tensor([[2, 70, 71, *range(size - 3, size), 80]])
    expected = torch.log_softmax(model(input_ids=ids).logits, dim=-1)
    assert run_command(["model", "merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "out")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert merged.config.vocab_size == size
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids(ADDED) == list(range(size - 3, size))
    torch.testing.assert_close(torch.log_softmax(merged(input_ids=ids).logits, dim=-1), expected, rtol=0, atol=1e-4)


def test_an_adapter_without_the_embeddings_of_its_added_tokens_is_told_to_name_its_base(tmp_path, capsys):
    base = save_random_model(tmp_path / "base", "llama3")
    with_added_tokens(tmp_path / "adapter", base, modules_to_save=["embed_tokens", "lm_head"])
    file = tmp_path / "adapter/adapter_model.safetensors"
    weights = load_file(file)
    for lost, words in (("lm_head", "0 of the output projection"), ("embed_tokens", "name the base model that has them all")):
        weights = {key: value for key, value in weights.items() if lost not in key}
        save_file(weights, file)
        if lost == "embed_tokens":
            config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
            (tmp_path / "adapter/adapter_config.json").write_text(json.dumps({**config, "modules_to_save": None}))
        assert run_command(["model", "merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "--base" in error
        assert not (tmp_path / "out").exists()
