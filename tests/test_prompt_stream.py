"""The prompts that a run takes: without duplicates, split exactly, in the mix of all, whatever the order of the files."""

import json
import random
from collections import Counter
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charter.commands.app import run_command
from charter.errors import InputError
from charter.reading.dealing import what_it_says
from charter.reading.prompts import KINDS, is_kind, read_prompts
from charter.reading.spool import PromptSpool, import_prompts, prepare_prompts, taken_prompts
from charter.records import Message, Prompt
from charter.run.files import read_jsonl, write_jsonl

texts = st.sampled_from(["a", "A", " a ", "ａ", "b", "c d", "c  D", "é", "e\u0301", "ß", "ss"]) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=6
)
prompts = st.builds(
    lambda words, principle, tags, split, system: Prompt(
        messages=(*([Message(role="system", content=system)] if system else []), Message(role="user", content=words)),
        principle=principle, tags=tuple(tags), split=split,
    ),
    texts.filter(str.strip), st.sampled_from([None, "p", "q"]), st.permutations(KINDS[:2]).flatmap(
        lambda tags: st.sampled_from([tags[:0], tags[:1], tags])),
    st.sampled_from([None, None, None, "train", "test"]), st.sampled_from(["", "a", "b"]),
)  # fmt: skip
lists = st.lists(prompts, max_size=40)


@contextmanager
def spool_of(folder, members):
    with PromptSpool(folder.mktemp("spool") / "out.jsonl") as spool:
        spool.extend(members)
        yield spool


def unique(folder, members) -> list[Prompt]:
    with spool_of(folder, members) as spool:
        return list(spool.read(spool.unique()))


def split(folder, members, *, test_fraction, seed) -> list[str]:
    with spool_of(folder, members) as spool:
        dealt = spool.split(spool.everything(), test_fraction=test_fraction, seed=seed)
        return [("train", "test")[number] for number in dealt]


def sample(folder, members, n, *, seed, by=("principle",)) -> list[Prompt]:
    with spool_of(folder, members) as spool:
        return list(spool.read(spool.take(spool.everything(), n, seed=seed, by=by)))


def crowd(n: int, kinds: int = 3, **fields) -> list[Prompt]:
    return [Prompt.ask(f"prompt {i}", principle=f"p{i % kinds}", **fields) for i in range(n)]


@given(lists)
def test_what_was_put_in_comes_out_and_of_those_that_say_the_same_the_first_stays(tmp_path_factory, members):
    with spool_of(tmp_path_factory, members) as spool:
        assert list(spool.read(spool.everything())) == members
    first: dict[bytes, Prompt] = {}
    for prompt in members:
        first.setdefault(what_it_says(prompt), prompt)
    assert unique(tmp_path_factory, members) == list(first.values())


def test_duplicates_differ_at_most_in_case_space_and_unicode_form(tmp_path_factory):
    first = Prompt.ask("Is  the ﬁrst Ｏne\nhere?", source="kept")
    same = [Prompt.ask("is the first one here?"), Prompt.ask(" Is the FIRST one here? "), Prompt.ask(first.last_turn)]
    other = Prompt.ask("Is the first one here")
    assert unique(tmp_path_factory, [first, other, *same]) == [first, other]
    asked_by_system = Prompt(messages=(Message(role="system", content=other.last_turn),))
    assert unique(tmp_path_factory, [other, asked_by_system]) == [other, asked_by_system]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 60), kinds=st.integers(1, 9), fraction=st.floats(0, 1), seed=st.integers(0, 9), order=st.randoms())
def test_a_split_hits_the_fraction_in_every_stratum_and_ignores_the_order(tmp_path_factory, n, kinds, fraction, seed, order):
    members = crowd(n, kinds)
    sides = dict(zip(members, split(tmp_path_factory, members, test_fraction=fraction, seed=seed), strict=True))
    tests = Counter(prompt.principle for prompt, side in sides.items() if side == "test")
    assert tests.total() == round(n * fraction)
    for principle, size in Counter(prompt.principle for prompt in members).items():
        assert abs(tests[principle] - size * fraction) < 1 + 1e-9
    shuffled = order.sample(members, n)
    assert sides == dict(zip(shuffled, split(tmp_path_factory, shuffled, test_fraction=fraction, seed=seed), strict=True))


def test_the_split_of_a_file_stays_and_counts(tmp_path_factory):
    members = [*(Prompt.ask(f"free {i}") for i in range(7)), *(Prompt.ask(f"marked {i}", split="test") for i in range(3))]
    sides = split(tmp_path_factory, members, test_fraction=0.4, seed=0)
    assert sides[7:] == ["test"] * 3
    assert Counter(sides) == {"test": 4, "train": 6}
    assert set(split(tmp_path_factory, members, test_fraction=0.1, seed=0)[:7]) == {"train"}


def test_another_seed_is_another_split(tmp_path_factory):
    a, b = (split(tmp_path_factory, crowd(40), test_fraction=0.5, seed=seed) for seed in (0, 1))
    assert a != b


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 60), share=st.floats(0, 1), kinds=st.integers(1, 7), order=st.randoms())
def test_a_sample_has_its_size_and_the_mix_of_the_whole(tmp_path_factory, size, share, kinds, order):
    members = crowd(size, kinds)
    n = round(size * share)
    taken = sample(tmp_path_factory, members, n, seed=5)
    assert len({prompt.id for prompt in taken}) == len(taken) == n
    mix = Counter(prompt.principle for prompt in taken)
    for principle, whole in Counter(prompt.principle for prompt in members).items():
        assert abs(mix[principle] - whole * n / size) < 1 + 1e-9
    assert sample(tmp_path_factory, order.sample(members, size), n, seed=5) == taken


def test_a_sample_may_be_mixed_by_other_fields(tmp_path_factory):
    benign = [Prompt.ask(f"benign {i}", principle="p0", tags=("benign",)) for i in range(10)]
    members = crowd(30, 1, tags=("red_team",)) + benign
    random.Random(0).shuffle(members)
    taken = sample(tmp_path_factory, members, 8, seed=0, by=("principle", "tags"))
    assert Counter(prompt.tags[0] for prompt in taken) == {"red_team": 6, "benign": 2}
    assert taken != sample(tmp_path_factory, members, 8, seed=1, by=("principle", "tags"))


@given(lists, lists, st.sampled_from([None, 1, 5]), st.sampled_from([None, 2]), st.floats(0, 1), st.integers(0, 3))
def test_the_stage_writes_what_a_preview_shows(tmp_path_factory, first, second, train, test, fraction, seed):
    folder = tmp_path_factory.mktemp("stage")
    files = [folder / "first.jsonl", folder / "second.jsonl"]
    for file, members in zip(files, ([*first, Prompt.ask("one")], [*second, Prompt.ask("one")]), strict=True):
        write_jsonl(file, members)

    def read():
        return (prompt for file in files for prompt in read_prompts(file))

    numbers = {"train": train, "test": test, "test_fraction": fraction, "seed": seed}
    result = prepare_prompts(read(), folder / "out.jsonl", **numbers, shorter=lambda: 6)
    written = list(read_jsonl(folder / "out.jsonl", Prompt))
    assert sorted(file.name for file in folder.iterdir()) == ["first.jsonl", "out.jsonl", "second.jsonl"]

    fits = [p for p in unique(tmp_path_factory, read()) if sum(len(m.content) for m in p.messages) < 6]
    n_read = len(list(read()))
    assert result["read"] == n_read
    assert result["too_long"] == n_read - result["duplicates"] - len(fits)
    assert {what_it_says(p) for p in written} <= {what_it_says(p) for p in fits}
    assert all(by_id.split in (None, p.split) for p in written for by_id in fits if by_id.id == p.id)
    assert sum(result["principles"].values()) == len(written)

    with taken_prompts(read(), **numbers, shorter=6) as taken:
        shown = [p for part in ("train", "test") for kind in KINDS for p in taken.read(part, kind)]
        assert shown == written
        assert taken.unsorted == sum(p.principle is None for p in fits)
        for part, wanted in (("train", train), ("test", test)):
            for kind in KINDS:
                part_of_kind = taken.read(part, kind)
                assert taken.counts[f"{part} {kind}"] == len(part_of_kind) == len({p.id for p in part_of_kind})
                assert all(p.split == part and is_kind(p.tags, kind) for p in part_of_kind)
                assert wanted is None or len(part_of_kind) <= wanted
                assert taken.read(part, kind, 1) == taken.read(part, kind)[:1]


@given(lists, st.integers(0, 3))
def test_prompts_are_split_under_the_principle_that_they_were_sorted_by(tmp_path_factory, members, seed):
    def sort(batch):
        return [p if p.principle else p.model_copy(update={"principle": "qr"[len(p.last_turn) % 2]}) for p in batch]

    def stage(name, prompts, **more):
        out = tmp_path_factory.mktemp(name) / "out.jsonl"
        prepare_prompts(prompts, out, train=3, test=2, test_fraction=0.3, seed=seed, **more)
        return list(read_jsonl(out, Prompt))

    members = unique(tmp_path_factory, members)
    assert stage("sorted", members, sort=sort) == stage("before", sort(members))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("limit", [None, 5])
def test_an_import_writes_unique_prompts_with_splits(tmp_path, suffix, limit):
    members = [Prompt.ask(f"question {i % 17}", tags=(KINDS[i % 2],)) for i in range(40)]
    write_jsonl(tmp_path / "in.jsonl", members)
    out = tmp_path / f"out{suffix}"
    result = import_prompts(tmp_path / "in.jsonl", out, tags=["mine"], limit=limit, test_fraction=0.25, seed=1)
    assert result == {"read": 40, "duplicates": 23, "written": limit or 17}
    written = list(read_prompts(out))
    assert len({prompt.last_turn for prompt in written}) == len(written) == (limit or 17)
    assert all(prompt.tags[-1] == "mine" for prompt in written)
    assert sum(prompt.split == "test" for prompt in written) == round(0.25 * len(written))


def test_a_bad_row_leaves_nothing_behind(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "good"}) + "\n" + json.dumps({"prompt": ""}) + "\n")
    assert run_command(["prompts", "import", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out/p.jsonl")]) == 2
    assert "in.jsonl, line 2" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(InputError, match="unknown suffix"):
        import_prompts(tmp_path / "in.jsonl", tmp_path / "p.xml", test_fraction=0.2, seed=0)
