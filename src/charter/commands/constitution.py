"""The commands on constitutions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, show
from charter.errors import GateError

app = typer.Typer(help="Check, compare and import constitutions.", no_args_is_help=True)
ConstitutionFile = Annotated[Path, typer.Argument(help="A constitution in YAML.")]
PublishedFile = Annotated[Path, typer.Argument(help="A constitution in JSON, or a .txt file with one principle per line.")]


@app.command("check")
def constitution_check(file: ConstitutionFile, as_json: Json = False) -> None:
    """Check a constitution and list errors and warnings; errors give exit code 1."""
    from charter.constitution.constitution import check, load_constitution

    constitution = load_constitution(file)
    findings = check(constitution)
    rows = [vars(finding) for finding in findings]
    lines = [f"{finding.severity}: {finding.principle or 'constitution'}: {finding.words}" for finding in findings]
    n = len(constitution.principles)
    summary = f"{file}: {n} principle{'s' * (n != 1)}, {len(findings)} finding{'s' * (len(findings) != 1)}"
    show({"file": str(file), "principles": n, "findings": rows}, as_json, *lines, summary)
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
    file: PublishedFile, out: Annotated[Path, typer.Option("--out", "-o", help="YAML file to write.")], as_json: Json = False
) -> None:
    """Turn a published constitution (Anthropic's JSON files, llm-swarm's, a plain list) into Charter's YAML."""
    from charter.constitution.constitution import save_constitution
    from charter.constitution.importers import import_constitution

    constitution = import_constitution(file)
    save_constitution(constitution, out)
    n = len(constitution.principles)
    show({"principles": n, "out": str(out)}, as_json, f"{n} principles: {out}")
