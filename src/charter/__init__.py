"""Charter: align language models to a written constitution and to human votes, and prove whether it worked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charter.comparing.compare import Comparison
    from charter.comparing.paired import Correction
    from charter.measuring.evaluation import Evaluation
    from charter.measuring.run_report import RunReport

__version__ = "0.1.0"


def compare(
    *sources: str | os.PathLike[str],
    margin: float | Mapping[str, float] | None = None,
    correction: Correction = "holm",
    lower: Sequence[str] = (),
    cluster: str | None = None,
) -> Comparison:
    """Compare models item by item, from two or more result files or runs, as ``charter compare`` does.

    margin: the largest difference that does not matter, for all metrics or by metric. correction: "holm", "bh" or "none", over
    all metrics and pairs. lower: metrics of which less is better. cluster: a field whose value joins items. InputError if a
    file cannot be read, kinds differ, or nothing is shared.
    """
    from charter.comparing.compare import compare_files

    margins: dict[str | None, float] = {}
    if margin is not None:
        margins.update(margin.items() if isinstance(margin, Mapping) else [(None, margin)])
    return compare_files(sources, margins=margins, correction=correction, lower=lower, cluster=cluster)


def evaluate(
    model: str | os.PathLike[str],
    sets: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    against: Sequence[str | os.PathLike[str]] = (),
    scorer: str = "refusal-words",
    measures: Mapping[str, str] | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate a model on files of test sets, paired with the models ``against``, as ``charter evaluate MODEL --set FILE`` does.

    measures: sources by name. out: folder of the evaluation, ``evaluations/MODEL`` unless given. options: the fields of
    :class:`charter.measuring.evaluate.Options`, such as limit, lower, tags, seed. InputError if a model, a set or a scorer
    cannot be read, or where they do not fit together.
    """
    from charter.measuring.evaluate import Options, evaluate_models

    files = [sets] if isinstance(sets, str | os.PathLike) else sets
    how = Options(scorer=scorer, measures=measures or {}, **{"quiet": True, **options})
    models = [os.fspath(path) for path in (model, *against)]
    return evaluate_models(models, [os.fspath(file) for file in files], None if out is None else Path(out), how)


def run(
    recipe: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    until: str = "evaluate",
    quiet: bool = True,
    **changes: Any,
) -> RunReport:
    """Run a recipe (a file, or the name of one that ships) and return its report, as ``charter run RECIPE`` does; resumes.

    changes: settings in place of the recipe's, as ``--set`` has them, with two underscores for a dot: ``seed=3, rl__steps=20``. A
    mapping replaces its whole section. out: folder of the run, ``runs/RECIPE`` unless given. until: the last stage. InputError
    where the recipe or a change is wrong, GateError if a gate stops the run.
    """
    from charter.commands.run import run_file
    from charter.measuring.run_report import RunReport
    from charter.recipe.files import find_recipe

    path = find_recipe(os.fspath(recipe))
    keys = {key: key if "." in key else key.replace("__", ".") for key in changes}
    settings = {keys[key]: os.fspath(v) if isinstance(v, os.PathLike) else v for key, v in changes.items()}
    return RunReport(*run_file(path, None if out is None else Path(out), changes=settings, until=until, quiet=quiet))


def load(run: str | os.PathLike[str]) -> RunReport:
    """The report of a run folder, finished or stopped. InputError if the folder has none."""
    from charter.measuring.run_report import load_report

    return load_report(run)
