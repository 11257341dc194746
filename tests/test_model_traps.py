"""Traps of real checkpoints: templates, beginnings, ends, pads, sizes that do not agree. Each is right, or one clear line."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from charter.errors import InputError
from charter.models.chat_template import decode_response, encode_prompt, encode_response, encode_text, end_ids
from charter.models.load import load_classifier, load_tokenizer
from charter.models.packing import Tokens
from charter.models.sampling.sampler import LocalSampler
from charter.models.trunk import REFERENCE, load_trunk
from charter.recipe.settings import LoRASettings
from charter.records import Message, Prompt
from charter.run.run import Run
from charter.stages.rl.settings import RLOOSettings
from charter.stages.sft.settings import SFTSettings
from charter.training.methods.sft import sft_tokens, train_sft
from charter.training.rollouts import collect
from conftest import HARMFUL, save_random_classifier, save_random_model

ASKED = [Message(role="user", content="How can I mend the door?")]
PROMPTS = [Prompt.ask(text) for text in HARMFUL[:4]]
END, PAD, USER, ASSISTANT, SYSTEM = range(5)  # of the tokenizer in conftest


def change(folder, name, **values):
    """Put values into one of a model's JSON files; None takes a key out."""
    file = folder / name
    now = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in now.items() if value is not None}))
    return folder


def begin_with(folder, token, number):
    """Let the tokenizer put a token before every text without saying so, as Llama 3's does."""
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
    file.write_text(json.dumps(values))
    return change(folder, "tokenizer_config.json", bos_token=token)


@pytest.fixture
def folder(tmp_path):
    return save_random_model(tmp_path / "model", "llama")


def learn(folder, place, lora=None):
    """The losses of two steps of fine-tuning."""
    trunk = load_trunk(str(folder), lora=lora)
    with Run(place, quiet=True) as run, run.stage("sft", {}, {}, []) as stage:
        train_sft(trunk, sft_tokens(trunk, [(p.messages, "No.") for p in PROMPTS]), SFTSettings(epochs=2), stage)
        return trunk, [row["loss"] for row in stage.metrics()]


def test_no_pad_token_or_one_that_is_the_end_changes_nothing(tmp_path):
    own = save_random_model(tmp_path / "own", "llama")
    same = save_random_model(tmp_path / "same", "llama", pad_is_eos=True)
    none = change(save_random_model(tmp_path / "none", "llama"), "tokenizer_config.json", pad_token=None)
    assert AutoTokenizer.from_pretrained(none).pad_token is None
    losses = [learn(folder, tmp_path / f"run-{folder.name}")[1] for folder in (own, same, none)]
    assert losses[0] == losses[1] == losses[2]
    texts = [
        LocalSampler(load_trunk(str(folder)), "m").generate([ASKED] * 2, [[1], [2]], temperature=1.0, max_new_tokens=8)
        for folder in (own, same, none)
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_model_without_a_template_is_given_one_that_is_saved_with_it(tmp_path):
    folder = save_random_model(tmp_path / "model", "llama", template=False)
    trunk, _ = learn(folder, tmp_path / "run")
    trunk.save_language_model("policy", tmp_path / "saved")
    text = AutoTokenizer.from_pretrained(tmp_path / "saved").apply_chat_template(
        [ASKED[0].model_dump()], tokenize=False, add_generation_prompt=True
    )
    assert text == "\n\nHuman: How can I mend the door?\n\nAssistant:"


def test_a_template_that_writes_bos_and_a_tokenizer_that_adds_it_give_one(folder):
    begin_with(folder, "<|system|>", SYSTEM)
    template = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer("a")["input_ids"][0] == SYSTEM  # the tokenizer does
    ids = encode_prompt(tokenizer, ASKED)
    assert ids[:2] == [SYSTEM, USER]
    assert ids.count(SYSTEM) == 1
    assert SYSTEM not in encode_response(tokenizer, "No.")


def test_a_tokenizer_that_adds_bos_without_saying_so_is_believed(tmp_path):
    """Llama 3's has no add_bos_token; a base model begins with it, and so does the template it is given."""
    folder = begin_with(save_random_model(tmp_path / "model", "llama", template=False), "<|system|>", SYSTEM)
    tokenizer = load_tokenizer(str(folder))
    assert encode_text(tokenizer, "a")[0] == SYSTEM
    assert encode_prompt(tokenizer, ASKED)[0] == SYSTEM
    assert encode_prompt(tokenizer, ASKED).count(SYSTEM) == 1
    rendered = tokenizer.apply_chat_template([ASKED[0].model_dump()], tokenize=False)
    assert rendered.startswith("<|system|>")  # so other programs begin with it too


def test_a_template_that_writes_a_bos_the_tokenizer_lacks_is_refused(folder):
    change(folder, "config.json", bos_token_id=SYSTEM)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    with pytest.raises(InputError, match=r"bos_token.*id 4.*tokenizer_config\.json"):
        load_tokenizer(str(folder))


def test_a_conversation_that_the_template_refuses_is_one_line(folder):
    words = "System role not supported"
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('" + words + "') }}{% endif %}{{ messages[0].content }}"
    )
    tokenizer = load_tokenizer(str(folder))
    with pytest.raises(InputError, match=f"system, user: {words}"):
        encode_prompt(tokenizer, [Message(role="system", content="x"), *ASKED])


def test_sampling_ends_at_any_of_several_ends(folder):
    """Llama 3 names <|eot_id|> and <|end_of_text|>."""
    plain = load_trunk(str(folder))
    assert end_ids(plain.tokenizer) == (END,)
    change(folder, "generation_config.json", eos_token_id=[SYSTEM, END, 300])  # 300 is a word here
    trunk = load_trunk(str(folder))
    assert end_ids(trunk.tokenizer) == (END, SYSTEM)  # the template closes with END
    weight = trunk.model.get_output_embeddings().weight
    with torch.no_grad():
        weight[SYSTEM] *= 60
    settings = RLOOSettings(prompts_per_step=4, samples_per_prompt=4, max_new_tokens=12)
    rollout = collect(trunk, PROMPTS, settings, seed=0, role=REFERENCE)
    last = [ids[mask].tolist()[-1] for ids, mask in zip(rollout.ids, rollout.mask, strict=True)]
    assert SYSTEM in last
    for ids, mask, text, finished in zip(rollout.ids, rollout.mask, rollout.texts, rollout.finished, strict=True):
        row = ids[mask].tolist()
        assert finished == (row[-1] in (END, SYSTEM))
        assert not {END, SYSTEM} & set(row[:-1])
        assert text == decode_response(trunk.tokenizer, row)
        if finished:
            assert not text.endswith(("<|end|>", "<|system|>"))


def test_responses_are_closed_as_the_template_closes_them(folder):
    """Gemma's tokenizer ends with <eos>, its turns with <end_of_turn>."""
    change(folder, "generation_config.json", eos_token_id=[END, SYSTEM])
    template = "{% for m in messages %}<|user|>{{ m.content }}<|system|>\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.eos_token_id == END
    assert encode_response(tokenizer, "No.")[-1] == SYSTEM
    assert decode_response(tokenizer, encode_response(tokenizer, "No.")) == "No."


def test_a_tokenizer_without_an_end_takes_the_model_s(folder):
    change(folder, "tokenizer_config.json", eos_token=None)
    assert load_tokenizer(str(folder)).eos_token_id == END
    change(folder, "generation_config.json", eos_token_id=None)
    change(folder, "config.json", eos_token_id=None)
    with pytest.raises(InputError, match="no end-of-sequence token"):
        load_tokenizer(str(folder))


def test_more_tokens_than_embeddings_are_refused_with_both_numbers(tmp_path, folder):
    for place, load in ((folder, load_trunk), (save_random_classifier(tmp_path / "classifier"), load_classifier)):
        tokenizer = AutoTokenizer.from_pretrained(place)
        n = len(tokenizer)
        tokenizer.add_tokens(["<new>", "<other>"])
        tokenizer.save_pretrained(place)
        with pytest.raises(InputError, match=rf"{n + 2} tokens.*embeddings for {n}"):
            load(str(place))


@pytest.mark.parametrize("architecture", ["llama", "llama3", "gpt2", "gemma2", "t5"])
def test_rows_that_fill_the_embedding_up_are_never_sampled(tmp_path, architecture):
    folder = save_random_model(tmp_path / "model", architecture)
    plain = load_trunk(str(folder))
    known = len(plain.tokenizer)
    model = plain.model
    model.resize_token_embeddings(known, pad_to_multiple_of=64)
    with torch.no_grad():
        model.get_output_embeddings().weight[known:] = 3 * model.get_output_embeddings().weight[:1]
    model.save_pretrained(folder)
    trunk = load_trunk(str(folder))
    assert trunk.vocabulary == known
    assert trunk.model.get_output_embeddings().weight.shape[0] > known
    settings = RLOOSettings(prompts_per_step=4, samples_per_prompt=4, max_new_tokens=12)
    rollout = collect(trunk, PROMPTS, settings, seed=0, role=REFERENCE)
    assert int(rollout.ids.max()) < known
    rows = [
        Tokens(prompt, ids[mask].tolist())
        for prompt, ids, mask in zip(rollout.prompt_ids, rollout.ids, rollout.mask, strict=True)
    ]
    logprobs, entropy = trunk.logprobs(REFERENCE, trunk.pack(rows), entropy=True)
    torch.testing.assert_close(logprobs, rollout.logprobs, rtol=0, atol=1e-4)
    sums = LocalSampler(trunk, "m").option_logprobs([ASKED], [[chr(i) for i in range(65, 91)]])[0]
    assert sum(torch.tensor(sums).exp().tolist()) < 1
    assert bool((entropy <= torch.log(torch.tensor(float(known))) + 1e-5).all())


@pytest.mark.parametrize("lora", [None, LoRASettings(rank=2)], ids=["full", "lora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "t5"])
def test_tied_embeddings_stay_tied(tmp_path, architecture, lora):
    from safetensors import safe_open

    folder = save_random_model(tmp_path / "model", architecture)
    trunk, _ = learn(folder, tmp_path / "run", lora)
    trunk.save_language_model("policy", tmp_path / "saved")
    saved = load_trunk(str(tmp_path / "saved")).model
    assert saved.get_output_embeddings().weight is saved.get_input_embeddings().weight
    with safe_open(tmp_path / "saved/model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_untied_embeddings_stay_apart(tmp_path):
    folder = save_random_model(tmp_path / "model", "llama3")
    trunk, _ = learn(folder, tmp_path / "run", LoRASettings(rank=2))
    trunk.save_language_model("policy", tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved.get_output_embeddings().weight is not saved.get_input_embeddings().weight


def test_a_sliding_window_hides_what_lies_before_it(tmp_path):
    """Two layers that see 8 tokens each carry nothing further than 14 back; rows are then not packed in one line."""
    trunk = load_trunk(str(save_random_model(tmp_path / "model", "mistral")))
    assert not trunk.packs
    far = [Tokens([first, *range(20, 40)], [7]) for first in (5, 6)]
    logprobs, _ = trunk.logprobs(REFERENCE, trunk.pack(far))
    assert logprobs[0].item() == pytest.approx(logprobs[1].item(), abs=1e-6)
    near = [Tokens([*range(20, 34), first, 9, 9], [7]) for first in (5, 6)]
    logprobs, _ = trunk.logprobs(REFERENCE, trunk.pack(near))
    assert logprobs[0].item() != pytest.approx(logprobs[1].item(), abs=1e-6)
