"""Two camps of raters: agreement within and between them, what both prefer, and a head for each."""

from collections.abc import Mapping

import numpy as np
import pytest

from charter.commands.app import run_command
from charter.errors import InputError
from charter.raters.comparisons import Votes, votes_of
from charter.raters.groups import BETWEEN, GAP, WITHIN, by_group, group_figures, lines_by_group, of_raters
from charter.raters.lines import rater_lines
from charter.raters.personal import OWN, final_heads, held_out, tastes
from charter.records import Judgment, Prompt
from charter.votes.exchange import export_again, export_feedback, manifest_path
from charter.votes.training_rows import NO_GROUP, NOT_ALL_GROUPS, NOT_SHARED, Selection
from feedback_folder import respond, vote, write_folder
from test_raters import campaign, taste_votes

HI = Prompt.ask("hi")
YES, NO, NEVER = (respond(HI, text) for text in ("yes", "no", "never"))
CAMPS = {"a1": "left", "a2": "left", "a3": "left", "b1": "right", "b2": "right"}


def camps(prompts: int = 60, *, noise: float = 0.1, seed: int = 0, of: Mapping[str, str] = CAMPS) -> list[Judgment]:
    """Votes on two answers to each prompt: the left camp prefers x, the right one y, and each errs now and then."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(prompts):
        for rater, camp in of.items():
            first = (camp == "left") == (rng.random() >= noise)
            shown = (f"{i}x", f"{i}y")[:: 1 - 2 * (i % 2)]
            rows.append(Judgment(id=f"{i}-{rater}", set_id=f"s{i}", prompt_id=f"p{i}", rater_id=rater, rater_kind="human",
                                 order=shown, ranks={f"{i}x": 2 - first, f"{i}y": 1 + first}))  # fmt: skip
    return rows


def figures(votes: Votes, groups=CAMPS) -> dict:
    return {figure.name: figure for figure in group_figures(votes, groups)}


def test_agreement_within_and_between_groups_by_hand():
    """Of each prompt three pairs of votes within left, one within right, six between: all agree, all agree, none does."""
    found = figures(votes_of(camps(20, noise=0)))
    counts = {name: (figure.value, figure.n) for name, figure in found.items()}
    assert counts == {"within left": (1, 60), "within right": (1, 20), "between left and right": (0, 120), WITHIN: (1, 80),
                      BETWEEN: (0, 120), GAP: (1, 200)}  # fmt: skip


def test_groups_that_are_none_do_not_differ():
    rows = campaign(0, raters=12, prompts=150)
    gap = figures(votes_of(rows), {f"r{i:02}": str(i % 2) for i in range(12)})[GAP]
    assert gap.ci[0] < 0 < gap.ci[1]


def test_nobody_of_a_minority_is_flagged_beside_its_own_group():
    of = {f"a{i}": "left" for i in range(7)} | {f"b{i}": "right" for i in range(3)}
    votes = votes_of(camps(of=of))
    assert {line.rater for line in rater_lines(votes) if "reversed" in line.words} == {"b0", "b1", "b2"}  # beside everybody
    by_camp = lines_by_group(votes, of)
    assert {name: [line.words for line in lines] for name, lines in by_camp.items()} == {"left": [()] * 7, "right": [()] * 3}


def test_the_votes_of_some_raters_are_those_of_their_judgments_alone():
    rows = campaign(1, prompts=80)
    some = {f"r{i:02}" for i in range(7, 15)}
    votes = votes_of(rows)
    taken = rater_lines(of_raters(votes, np.array([rater in some for rater in votes.raters])))
    alone = rater_lines(votes_of([row for row in rows if row.rater_id in some]))
    assert {line.rater: (pytest.approx(line.beta, abs=1e-4), line.n_agrees) for line in alone} == {
        line.rater: (line.beta, line.n_agrees) for line in taken
    }


def test_group_heads_beat_the_pooled_one_and_point_where_the_camps_do():
    votes, features = taste_votes(0)
    camp = {f"r{i:02}": "minority" if i < 6 else "majority" for i in range(3, 20)}  # the first three toss coins
    predicted = held_out(by_group(votes, camp), features)
    assert predicted.gain.ci[0] > 0
    assert {taste.rater: taste.word for taste in tastes(predicted)}["minority"] == OWN
    heads = final_heads(predicted, features)
    cosine = heads["minority"] @ heads["majority"] / np.linalg.norm(heads["minority"]) / np.linalg.norm(heads["majority"])
    assert abs(cosine) < 0.2  # planted at a right angle
    rows = predicted.votes.rater == predicted.votes.raters.index("minority")
    x, y, win = predicted.votes.x[rows], predicted.votes.y[rows], predicted.win[rows]
    assert (((features[x] - features[y]) @ heads["minority"] > 0) == (win == 1)).mean() > 0.8


@pytest.mark.parametrize("groups", [{}, {"a1": "left", "a2": "left"}])
def test_two_groups_are_needed(groups):
    with pytest.raises(InputError, match=r"are in \d groups"):
        group_figures(votes_of(camps(3)), groups)


def test_a_preference_is_shared_only_where_each_group_holds_it(tmp_path):
    ranked = {"a1": (1, 2, 3), "a2": (1, 3, 2), "a3": (1, 2, 3), "b1": (1, 3, 2), "b2": (1, 2, 2), "z": (3, 2, 1)}
    votes = [vote(f"{i:02}", (YES, NO, NEVER), ranks, rater_id=rater) for i, (rater, ranks) in enumerate(ranked.items())]
    folder = write_folder(tmp_path / "feedback", [HI], [YES, NO, NEVER], votes)
    (tmp_path / "camps.csv").write_text("rater,group\n" + "".join(f"{rater},{camp}\n" for rater, camp in CAMPS.items()))
    out, table = tmp_path / "shared.csv", tmp_path / "camps.csv"
    card = export_feedback(folder, out, "csv", Selection(soft="groups"), groups=table)
    rows = [line.split(",")[1:4] for line in out.read_text().splitlines()[1:]]
    assert rows == [['"yes"', '"no"', "1.0"], ['"yes"', '"never"', "1.0"]]
    assert card["left_out"] == {NOT_SHARED: 1, NO_GROUP: 3}
    assert export_again(folder, tmp_path / "again.csv", manifest_path(out), groups=table)["sha256"] == card["sha256"]
    table.write_text(table.read_text() + "c1,absent\n")
    with pytest.raises(InputError, match=NOT_ALL_GROUPS):
        export_feedback(folder, tmp_path / "none.csv", "csv", Selection(soft="groups"), groups=table)
    with pytest.raises(InputError, match="made with a groups file"):
        export_again(folder, tmp_path / "again.csv", manifest_path(out), groups=table)


def test_the_weight_of_a_shared_pair_is_the_lowest_share_of_a_group(tmp_path):
    prefer = {"a1": True, "a2": True, "a3": False, "b1": True, "b2": True}
    votes = [vote(f"{i}", (YES, NO), (1, 2) if yes else (2, 1), rater_id=rater) for i, (rater, yes) in enumerate(prefer.items())]
    folder = write_folder(tmp_path / "feedback", [HI], [YES, NO], votes)
    (tmp_path / "camps.csv").write_text("rater,group\n" + "".join(f"{rater},{camp}\n" for rater, camp in CAMPS.items()))
    export_feedback(folder, tmp_path / "s.csv", "csv", Selection(soft="groups"), groups=tmp_path / "camps.csv")
    assert float((tmp_path / "s.csv").read_text().splitlines()[1].split(",")[3]) == pytest.approx(2 / 3)


def test_the_command_compares_each_rater_with_its_group(tmp_path, capsys):
    rows = "".join(f"m{1 - (i % 2)},m{i % 2},{'a' if (camp == 'left') == (i % 2 == 0) else 'b'},{i},{rater}\n"
                   for i in range(30) for rater, camp in {**CAMPS, "z": "left"}.items())  # fmt: skip
    (tmp_path / "v.csv").write_text("model_a,model_b,winner,prompt_id,rater\n" + rows)
    (tmp_path / "camps.csv").write_text("rater,group\n" + "".join(f"{rater},{camp}\n" for rater, camp in CAMPS.items()))
    assert run_command(["agreement", str(tmp_path / "v.csv"), "--groups", str(tmp_path / "camps.csv")]) == 0
    said = capsys.readouterr().out
    assert "within less between" in said
    assert "right, each rater beside the others of the group:" in said
    assert "left out of the figures of groups: 1 raters without a group (first z)" in said
    assert not [line for line in said.splitlines() if line.endswith("reversed")]
