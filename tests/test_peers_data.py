"""What is exported is read as it is by the ``datasets`` library and by TRL's trainers. Needs the extra `bench`."""

import warnings

import pytest

from charter.reading.pairs import read_pairs
from charter.records import Message, Prompt
from charter.votes.containers import dataset_folder_rows
from charter.votes.exchange import export_feedback
from charter.votes.training_rows import Selection
from conftest import save_random_model
from feedback_folder import respond, vote, write_folder

pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from datasets import load_dataset, load_from_disk

QUIET = {"report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no", "max_steps": 1, "disable_tqdm": True,
         "per_device_train_batch_size": 4}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rankings, pairs with a strength, a thumb: one turn and more."""
    place = tmp_path_factory.mktemp("feedback")
    asked = [Prompt.ask(f"How can I mend lamp {n}?") for n in range(6)]
    turns = ("How?", " Well.", "Once more?")
    roles = ("user", "assistant", "user")
    asked.append(Prompt(messages=[Message(role=r, content=t) for r, t in zip(roles, turns, strict=True)]))
    answers = [[respond(prompt, f"{word} {n}.") for word in ("Yes", "No", "Hm")] for n, prompt in enumerate(asked)]
    votes = [vote(f"0{n}", found, (2, 1, "F")) for n, found in enumerate(answers)]
    votes += [vote(f"1{n}", found[:2], (1, 2), strength=n % 4 + 1, set_id=f"p{n}") for n, found in enumerate(answers)]
    votes += [vote("20", answers[0][:1], (1,), set_id="thumb")]
    return write_folder(place / "f", asked, [one for found in answers for one in found], votes)


FORMATS = [("trl", "o.jsonl", "json"), ("trl", "o.csv", "csv"), ("trl-conversational", "o.jsonl", "json"),
           ("parquet", "o.parquet", "parquet"), ("csv", "o.csv", "csv"), ("hh", "o.jsonl", "json"),
           ("grouped", "o.jsonl", "json"), ("unpaired", "o.jsonl", "json"),
           ("unpaired-conversational", "o.parquet", "parquet")]  # fmt: skip


@pytest.mark.parametrize(("format", "name", "loader"), FORMATS)
def test_load_dataset_reads_every_export(folder, tmp_path, format, name, loader):
    manifest = export_feedback(folder, tmp_path / name, format, Selection())
    found = load_dataset(loader, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(found) == manifest["rows"]
    if loader == "csv":  # whose reader takes an empty cell for no value
        found = found.remove_columns("principle")
    assert all(value is not None for row in found for value in row.values())
    if format in ("trl", "parquet", "trl-conversational", "csv"):
        pairs = read_pairs(tmp_path / name).pairs
        assert [row["margin"] for row in found] == [pair.margin for pair in pairs]
        assert {0.0, 1 / 3, 2 / 3, 1.0} == {row["margin"] for row in found}


def test_load_from_disk_opens_the_folder(folder, tmp_path):
    manifest = export_feedback(folder, tmp_path / "d", "datasets", Selection())
    found = load_from_disk(str(tmp_path / "d"))
    assert len(found) == manifest["rows"]
    assert found[0]["prompt"] == [{"role": "user", "content": "How can I mend lamp 0?"}]
    assert found[0]["chosen"] == [{"role": "assistant", "content": "No 0."}]
    assert found.features["margin"].dtype == "float64"
    found.save_to_disk(str(tmp_path / "saved"))  # and what the library saves, we read
    assert len(list(dataset_folder_rows(tmp_path / "saved"))) == len(found)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("trained"), "llama")


@pytest.mark.parametrize("format", ["trl", "trl-conversational", "hh"])
@pytest.mark.parametrize("trainer", ["reward", "dpo"])
def test_trainers_take_a_step_on_the_pairs(folder, model, tmp_path, trainer, format):
    trl = pytest.importorskip("trl")
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    export_feedback(folder, tmp_path / "o.jsonl", format, Selection())
    data = load_dataset("json", data_files=str(tmp_path / "o.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    if trainer == "reward":
        network = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
        made = trl.RewardTrainer(model=network, args=trl.RewardConfig(output_dir=str(tmp_path), **QUIET), train_dataset=data,
                                 processing_class=tokenizer)  # fmt: skip
        if format != "hh":
            assert "margin" in next(iter(made.get_train_dataloader()))
    else:
        network = AutoModelForCausalLM.from_pretrained(model)
        made = trl.DPOTrainer(model=network, args=trl.DPOConfig(output_dir=str(tmp_path), **QUIET), train_dataset=data,
                              processing_class=tokenizer)  # fmt: skip
    assert made.train().training_loss > 0


@pytest.mark.parametrize("format", ["unpaired", "unpaired-conversational"])
def test_kto_takes_a_step_on_the_labels(folder, model, tmp_path, format):
    pytest.importorskip("trl")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        from trl import KTOConfig, KTOTrainer
    except ImportError:
        from trl.experimental.kto import KTOConfig, KTOTrainer

    export_feedback(folder, tmp_path / "o.jsonl", format, Selection())
    data = load_dataset("json", data_files=str(tmp_path / "o.jsonl"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["label"] for row in data} == {True, False}
    made = KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model), ref_model=AutoModelForCausalLM.from_pretrained(model),
        args=KTOConfig(output_dir=str(tmp_path), **QUIET), train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(model),
    )  # fmt: skip
    assert made.train().training_loss > 0
