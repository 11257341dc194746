"""Checks an installed wheel from outside the checkout: `make wheel` runs this with the Python of a clean environment.

Every file of the package is installed, `charter --help` works, every shipped recipe loads, a small run ends with its report, and
the label page answers with its templates, style and script.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from http.cookiejar import CookieJar
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
CHARTER = Path(sys.executable).with_name("charter")
TINY = ["prompts.train=12", "prompts.test=8", "revise.prompts=12", "revise.rounds=1", "sft.epochs=1", "feedback.prompts=12",
        "feedback.gate_pairs=12", "rl.steps=1", "rl.prompts_per_step=4", "gates.override=true"]  # fmt: skip


def files_of_the_checkout() -> set[str]:
    """What the wheel must hold: the package, the recipes and the constitutions."""
    package = {str(file.relative_to(CHECKOUT / "src")) for file in (CHECKOUT / "src/charter").rglob("*") if file.is_file()}
    content = {f"charter/{file.relative_to(CHECKOUT)}" for folder in ("recipes", "constitutions")
               for file in (CHECKOUT / folder).iterdir()}  # fmt: skip
    return {name for name in package | content if "__pycache__" not in name}


def check_files() -> None:
    """The installed files are those of the checkout, and Python loads those and no others."""
    import charter

    assert Path(sys.prefix).resolve() in Path(charter.__file__).resolve().parents, f"loaded from {charter.__file__}"
    installed = {str(file) for file in metadata.files("charter-align") or [] if "__pycache__" not in str(file)}
    missing = sorted(files_of_the_checkout() - installed)
    assert not missing, f"not in the wheel: {', '.join(missing)}"


def check_recipes() -> None:
    """`charter plan NAME` works for recipes on shipped models; the others name the file to download."""
    import charter
    from charter.commands.app import run_command

    for recipe in sorted((Path(charter.__file__).parent / "recipes").glob("*.yaml")):
        words = io.StringIO()
        with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
            code = run_command(["plan", recipe.stem])
        ships = "\nmodel: package:charter.testbed" in recipe.read_text()
        as_expected = (
            code == 0
            if ships
            else code == 2 and any(word in words.getvalue() for word in ("hf download", "split_votes", "cache/smollm2"))
        )
        assert as_expected, (recipe.stem, code, words.getvalue())
        print(f"  {recipe.stem}: {'planned' if ships else 'loads; its data must be downloaded first'}")


def check_label_page() -> None:
    """The link that `charter label` prints leads to a page whose style and script are there."""
    Path("answers.jsonl").write_text('{"prompt": "Hello", "responses": ["Good day.", "Go away."]}\n')
    with subprocess.Popen([CHARTER, "label", "answers.jsonl", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}) as server:  # fmt: skip
        try:
            link = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
            browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
            page = browser.open(link).read().decode()
            for target in re.findall(r'(?:href|src)="(/static/[^"]+)"', page):
                assert browser.open(re.match(r"http://[^/]+", link)[0] + target).status == 200
            inside = browser.open(urllib.request.Request(link, data=b"", method="POST")).read().decode()
            assert "instructions" in inside.lower()
        finally:
            server.terminate()


def main() -> None:
    """All of it, in an empty folder."""
    sys.stdout.reconfigure(line_buffering=True)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        check_files()
        print(f"{len(files_of_the_checkout())} files installed")
        assert "Usage" in subprocess.run([CHARTER, "--help"], check=True, capture_output=True, text=True).stdout
        check_recipes()
        subprocess.run([CHARTER, "run", "smoke", "--out", "run", *(f"--set={line}" for line in TINY)], check=True)
        assert "</html>" in Path("run/report.html").read_text()
        check_label_page()
    print("the wheel works")


if __name__ == "__main__":
    main()
