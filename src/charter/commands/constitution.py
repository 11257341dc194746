"""The commands on constitutions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, show
from charter.errors import GateError

app = typer.Typer(help="Check and import constitutions.", no_args_is_help=True)
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
