"""A stage is skipped only when the code that it runs is unchanged: the closure of its imports, no more and no less."""

import ast
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charter.run import code
from charter.run.code import PACKAGE, closure, closure_files, code_hash, imports_of

STAGES = sorted(f"charter.stages.{file.parent.name}.run" for file in (PACKAGE / "stages").glob("*/run.py"))
FILES = sorted(file for ending in ("*.py", "*.txt", "testbed/*.json") for file in PACKAGE.rglob(ending))
TEXTS = {file: file.read_text(encoding="utf-8") for file in FILES}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package's sources in a folder of their own, and a hash of a module's code as of that folder."""
    folder = tmp_path_factory.mktemp("copy") / "charter"
    for file, text in TEXTS.items():
        place = folder / file.relative_to(PACKAGE)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    patch = pytest.MonkeyPatch()
    patch.setattr(code, "PACKAGE", folder)
    code.direct_imports.cache_clear()
    yield folder
    patch.undo()
    code.direct_imports.cache_clear()


@settings(max_examples=60, deadline=None)
@given(stage=st.sampled_from(STAGES), file=st.sampled_from(FILES), where=st.floats(0, 1))
def test_a_changed_line_runs_a_stage_exactly_when_it_stands_in_its_closure(copy, stage, file, where):
    before = code_hash([stage])
    place = copy / file.relative_to(PACKAGE)
    inside = place in closure_files([stage])
    lines = TEXTS[file].splitlines()
    row = int(where * len(lines))
    place.write_text("\n".join([*lines[:row], *(line + " " for line in lines[row : row + 1]), *lines[row + 1 :], "# end"]))
    after = code_hash([stage])
    place.write_text(TEXTS[file], encoding="utf-8")
    assert (after != before) == inside
    assert code_hash([stage]) == before


@pytest.mark.parametrize("stage", STAGES)
def test_the_closure_of_a_stage_is_what_its_imports_reach(stage):
    reached = closure([stage])
    assert stage in reached
    for name in reached:
        file = PACKAGE / f"{name.removeprefix('charter.').replace('.', '/')}.py"
        inside = {target for target in imports_of(file) if code.module_file(target)}
        assert inside <= set(reached), f"{name} imports {sorted(inside - set(reached))}"


def test_a_method_is_in_the_closure_of_its_own_run_only():
    sft, rloo = closure(["charter.stages.sft.run"]), closure(["charter.stages.rl.run", "charter.training.methods.rloo"])
    assert "charter.training.methods.grpo" not in {*sft, *rloo}
    assert "charter.training.methods.rloo" in rloo
    assert "charter.training.methods.sft" in sft


def test_the_questions_to_a_judge_are_in_the_closure_of_the_feedback():
    names = {file.name for file in closure_files(["charter.stages.feedback.run"])}
    assert {"compare.txt", "helpful.txt", "harmful.txt"} <= names


def test_a_table_is_in_the_closure_of_the_module_of_its_name():
    names = {file.name for file in closure_files(["charter.testbed.oracle"])}
    assert {"language.py", "language.json"} <= names
    assert "dialogues.json" not in names


@pytest.mark.usefixtures("copy")
def test_the_hash_does_not_depend_on_the_order_of_the_modules():
    modules = ["charter.records", "charter.errors"]
    here = code_hash(modules)
    assert here == code_hash(modules[::-1])
    assert code_hash(["charter.errors"]) != here != code_hash([])


def test_an_import_for_type_checkers_does_not_count(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("import json\nif TYPE_CHECKING:\n    import torch\ndef f():\n    from os import path\n")
    assert imports_of(file) == {"json", "os", "os.path"}
    assert "torch" in imports_of(file, typing=True)
    assert ast.parse(Path(file).read_text())
