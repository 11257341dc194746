"""What is streamed is what the functions on lists give: the same prompts, in the same order."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charter.commands.app import run_command
from charter.errors import InputError
from charter.reading.dealing import deduplicate, split_prompts, take_stratified
from charter.reading.prompts import KINDS, is_kind, read_prompts, write_prompts
from charter.reading.spool import PromptSpool, import_prompts, prepare_prompts
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


def read_all(spool: PromptSpool, rows) -> list[Prompt]:
    return list(spool.read(rows))


@given(lists)
def test_the_first_of_those_that_say_the_same_stays(tmp_path_factory, found):
    with PromptSpool(tmp_path_factory.mktemp("spool") / "out.jsonl") as spool:
        spool.extend(found)
        assert read_all(spool, spool.everything()) == found
        assert read_all(spool, spool.unique()) == deduplicate(found)[0]


@given(lists, st.floats(0, 1), st.integers(0, 5))
def test_splits_are_dealt_alike(tmp_path_factory, found, fraction, seed):
    with PromptSpool(tmp_path_factory.mktemp("spool") / "out.jsonl") as spool:
        spool.extend(found)
        rows = spool.unique()
        dealt = [("train", "test")[number] for number in spool.split(rows, test_fraction=fraction, seed=seed)]
        expected = split_prompts(deduplicate(found)[0], test_fraction=fraction, seed=seed)
        assert dealt == [prompt.split for prompt in expected]


@given(lists, st.floats(0, 1), st.integers(0, 5), st.sampled_from([("principle",), ("principle", "tags")]))
def test_samples_are_drawn_alike(tmp_path_factory, found, share, seed, by):
    with PromptSpool(tmp_path_factory.mktemp("spool") / "out.jsonl") as spool:
        spool.extend(found)
        rows = spool.unique()
        n = round(share * len(rows))
        expected = take_stratified(deduplicate(found)[0], n, seed=seed, by=by)
        assert read_all(spool, spool.take(rows, n, seed=seed, by=by)) == expected


def in_lists(files, *, train, test, test_fraction, seed, shorter, sort):
    """The prompt stage on lists."""
    found = [p for file in files for p in read_prompts(file)]
    unique, n_duplicates = deduplicate(found)
    fitting = [p for p in unique if sum(len(m.content) for m in p.messages) < shorter]
    split = split_prompts(sort(fitting), test_fraction=test_fraction, seed=seed)
    chosen = []
    for part, wanted in (("train", train), ("test", test)):
        for kind in KINDS:
            pool = [p for p in split if p.split == part and is_kind(p.tags, kind)]
            n = min(wanted, len(pool)) if wanted else len(pool)
            chosen += take_stratified(pool, n, seed=seed, by=("principle", "tags"))
    return chosen, {"read": len(found), "duplicates": n_duplicates, "too_long": len(unique) - len(fitting)}


@given(lists, lists, st.sampled_from([None, 1, 5]), st.sampled_from([None, 2]), st.floats(0, 1), st.integers(0, 3))
def test_the_stage_gives_what_it_gives_on_lists(tmp_path_factory, first, second, train, test, fraction, seed):
    folder = tmp_path_factory.mktemp("stage")
    files = [folder / "first.jsonl", folder / "second.jsonl"]
    for file, found in zip(files, ([*first, Prompt.ask("one")], [*second, Prompt.ask("one")]), strict=True):
        write_jsonl(file, found)

    def sort(found):
        return [p if p.principle else p.model_copy(update={"principle": "qr"[len(p.last_turn) % 2]}) for p in found]

    settings = {"train": train, "test": test, "test_fraction": fraction, "seed": seed, "shorter": 6, "sort": sort}
    expected, figures = in_lists(files, **settings)
    result = prepare_prompts(
        (p for file in files for p in read_prompts(file)), folder / "out.jsonl", **settings | {"shorter": lambda: 6}
    )
    assert list(read_jsonl(folder / "out.jsonl", Prompt)) == expected
    assert {key: result[key] for key in figures} == figures
    assert sum(result["principles"].values()) == len(expected)
    assert sorted(file.name for file in folder.iterdir()) == ["first.jsonl", "out.jsonl", "second.jsonl"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("limit", [None, 5])
def test_an_import_writes_what_lists_would(tmp_path, suffix, limit):
    found = [Prompt.ask(f"question {i % 17}", tags=(KINDS[i % 2],)) for i in range(40)]
    write_jsonl(tmp_path / "in.jsonl", found)
    unique, _ = deduplicate(read_prompts(tmp_path / "in.jsonl", tags=("own",)))
    unique = take_stratified(unique, limit, seed=1) if limit else unique
    write_prompts(tmp_path / f"lists{suffix}", split_prompts(unique, test_fraction=0.25, seed=1))
    out = tmp_path / f"out{suffix}"
    result = import_prompts(tmp_path / "in.jsonl", out, tags=["own"], limit=limit, test_fraction=0.25, seed=1)
    assert out.read_bytes() == (tmp_path / f"lists{suffix}").read_bytes()
    assert result == {"read": 40, "duplicates": 23, "written": limit or 17}


def test_a_bad_row_leaves_nothing_behind(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": "good"}) + "\n" + json.dumps({"prompt": ""}) + "\n")
    assert run_command(["prompts", "import", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out/p.jsonl")]) == 2
    assert "in.jsonl, line 2" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(InputError, match="unknown suffix"):
        import_prompts(tmp_path / "in.jsonl", tmp_path / "p.xml", test_fraction=0.2, seed=0)
