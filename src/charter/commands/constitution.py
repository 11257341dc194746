"""The commands about constitutions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, show
from charter.errors import GateError

app = typer.Typer(help="Check and import constitutions.", no_args_is_help=True)
Constitution = Annotated[Path, typer.Argument(help="A constitution in YAML.")]
Published = Annotated[Path, typer.Argument(help="A constitution in JSON, or a .txt file with one principle per line.")]


@app.command("check")
def constitution_check(file: Constitution, as_json: Json = False) -> None:
    """Read a constitution and say what is wrong or doubtful in it; exit code 1 where something is wrong."""
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


@app.command("import")
def constitution_import(
    file: Published,
    out: Annotated[Path, typer.Option("--out", "-o", help="YAML file to write.")],
    as_json: Json = False,
) -> None:
    """Turn a published constitution (Anthropic's JSON files, llm-swarm's, a plain list) into Charter's YAML."""
    from charter.constitution.constitution import save_constitution
    from charter.constitution.importers import import_constitution

    constitution = import_constitution(file)
    save_constitution(constitution, out)
    n = len(constitution.principles)
    show({"principles": n, "out": str(out)}, as_json, f"{n} principles: {out}")
