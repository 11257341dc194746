"""The commands on constitutions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, Seed, show
from charter.errors import GateError, InputError

app = typer.Typer(help="Check, compare, import and export constitutions.", no_args_is_help=True)
ConstitutionFile = Annotated[Path, typer.Argument(help="A constitution in YAML.")]
PublishedFile = Annotated[
    Path, typer.Argument(help="A published file: Markdown, JSON, JSON lines, text, or the folder of a pol.is export.")
]


@app.command("check")
def constitution_check(
    file: ConstitutionFile,
    pairs: Annotated[
        str | None, typer.Option(help="Labelled pairs to measure each principle on; unless given, those in its examples.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Folder of the model that judges them.")] = None,
    protocol: Annotated[
        str, typer.Option(help="letters, yes_no, dialogue, rubric, likelihood, or auto: the best of them.")
    ] = "auto",
    most: Annotated[int, typer.Option(min=1, help="Most pairs to ask about.")] = 150,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Check a constitution and list errors and warnings: duplicates, contradictions, leaks; errors give exit code 1. With a model
    and labelled pairs also measure each principle: accuracy, how often it decides, and what it contradicts."""
    from charter.constitution.check import check
    from charter.constitution.constitution import load_constitution
    from charter.tasks.constitution_check import measured_check, measured_lines

    constitution = load_constitution(file)
    findings = check(constitution)
    measured = measured_check(constitution, file, pairs, model, protocol, most=most, seed=seed)
    findings += measured.pop("findings", [])
    rows = [vars(finding) for finding in findings]
    lines = [f"{finding.severity}: {finding.principle or 'constitution'}: {finding.words}" for finding in findings]
    n = len(constitution.principles)
    summary = f"{file}: {n} principle{'s' * (n != 1)}, {len(findings)} finding{'s' * (len(findings) != 1)}"
    show(
        {"file": str(file), "principles": n, "findings": rows, **measured}, as_json,
        *measured_lines(constitution, measured), *lines, summary,
    )  # fmt: skip
    if any(finding.severity == "error" for finding in findings):
        raise GateError(f"{file}: the constitution has errors")


@app.command("diff")
def constitution_diff(
    old: ConstitutionFile,
    new: Annotated[Path, typer.Argument(help="The constitution that it became.")],
    full: Annotated[bool, typer.Option("--full", help="Show the texts before and after.")] = False,
    as_json: Json = False,
) -> None:
    """Name what changed from one constitution to another, and the stages that a run repeats for it."""
    from charter.constitution.constitution import load_constitution
    from charter.constitution.difference import STAGES, differences

    rows = differences(load_constitution(old), load_constitution(new))
    lines = []
    for row in rows:
        lines.append(f"{row.change:11}{row.principle}: {row.words}" + (f"  → {', '.join(row.stages)}" if row.stages else ""))
        for field in row.before if full else ():
            lines += [f"  - {field}: {row.before[field]}", f"  + {field}: {row.after[field]}"]
    stages = [stage for stage in STAGES if any(stage in row.stages for row in rows)]
    again = f"a run repeats {', '.join(stages)} and what follows" if stages else "no stage of a run reads what changed"
    n = len(rows)
    lines.append(f"{n} change{'s' * (n != 1)}; {again}" if rows else "no change that reaches a model")
    show({"changes": [vars(row) for row in rows], "stages": stages}, as_json, *lines)


@app.command("import")
def constitution_import(
    file: PublishedFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="YAML file to write.")],
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of pol.is votes: keep a statement that every group supports by this share.")
    ] = 0.6,
    as_json: Json = False,
) -> None:
    """Turn a published constitution into Charter's YAML: OpenAI's Model Spec and other Markdown with headings, trait lists of
    Open Character Training, rubrics with points, pol.is votes, Anthropic's JSON files, llm-swarm's, a plain list. Print what
    arrived and what was left out."""
    from charter.constitution.constitution import save_constitution
    from charter.constitution.importers import import_constitution

    imported = import_constitution(file, threshold)
    save_constitution(imported.constitution, out)
    n = len(imported.constitution.principles)
    result = {"principles": n, "out": str(out), "kind": imported.kind, "counts": imported.counts, "left_out": imported.left_out}
    lines = [f"{imported.kind}: {n} principles: {out}", *(f"{count:6} {what}" for what, count in imported.counts.items())]
    show(result, as_json, *lines, *left_out_lines(imported.left_out))


@app.command("export")
def constitution_export(
    file: ConstitutionFile,
    pairs: Annotated[Path | None, typer.Option(help="JSONL file for the pairs: each good answer over each bad one.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSONL file for the prompts without an answer, held out.")] = None,
    few_shots: Annotated[Path | None, typer.Option("--few-shots", help="YAML file for worked examples of revision.")] = None,
    most: Annotated[int, typer.Option(min=1, help="Most worked examples.")] = 4,
    tag: Annotated[str, typer.Option(help="Tag of the prompts, by which the report shows them apart.")] = "constitution",
    as_json: Json = False,
) -> None:
    """Write the examples of a constitution as files that a recipe reads: labelled pairs for the judge gate, prompts for the
    evaluation, worked examples for the revise stage."""
    from charter.constitution import export
    from charter.constitution.constitution import load_constitution, save_constitution
    from charter.run.files import write_jsonl

    if not any((pairs, prompts, few_shots)):
        raise InputError("nothing to write; give --pairs, --prompts or --few-shots and a file")
    constitution = load_constitution(file)
    wanted = [
        ("pairs", pairs, export.labelled_pairs(constitution)),
        ("prompts", prompts, export.evaluation_prompts(constitution, tag)),
        ("worked examples", few_shots, export.worked_examples(constitution, most)),
    ]
    for what, path, made in wanted:
        if path is not None and not made.rows:
            reasons = "; ".join(f"{n} {reason}" for reason, n in made.left_out.items())
            raise InputError(
                f"no example makes {what}" + (f" ({reasons})" if reasons else "; import a file that has some"), file=file
            )
    result, lines = {}, []
    for what, path, made in wanted:
        if path is None:
            continue
        if what == "worked examples":
            save_constitution(export.few_shots(made.rows, constitution), path)
        else:
            write_jsonl(path, made.rows)
        result[what] = {"written": len(made.rows), "out": str(path), "left_out": made.left_out}
        lines += [f"{len(made.rows)} {what}: {path}", *left_out_lines(made.left_out)]
    show(result, as_json, *lines)


def left_out_lines(left_out: dict[str, int]) -> list[str]:
    """What was left out, a line for each reason. The reasons quote the file: control characters are spelled out."""
    from charter.tasks.conversation import escape_controls

    return [f"{count:6} left out: {escape_controls(reason)}" for reason, count in left_out.items()]
