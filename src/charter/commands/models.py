"""The commands that chat with a model, serve it, merge it, or send it to the hub."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from charter.commands.options import Json, Quiet, Seed, Understood, interval_words, show
from charter.errors import InputError

app = typer.Typer()
model_app = typer.Typer(help="Models for other programs.", no_args_is_help=True)
Person = Annotated[str | None, typer.Option(help="Of a run: the model of this person (charter person).")]


def model_name(model: str | None, person: str | None) -> str | None:
    """The model of a run that the options name. InputError where both are there."""
    if model is not None and person is not None:
        raise InputError("--person names the model; leave --model out")
    return model if person is None else f"person {person}"


@app.command()
def chat(
    where: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub name of a model, or a run folder.")],
    model: Annotated[str | None, typer.Option(help="Model of a run: base, sft or policy (default).")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token always.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Draw among the fewest likeliest tokens that make up this probability.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among this many likeliest tokens.")] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Draw among the tokens with at least this fraction of the likeliest token's probability."
        ),
    ] = None,
    person: Person = None,
    seed: Seed = 0,
    understood: Understood = False,
) -> None:
    """Talk to a model, or to a model of a run; an empty line or Ctrl-D ends."""
    from charter.records import Filters
    from charter.tasks.conversation import chat_with

    if not 0 <= temperature < float("inf"):
        raise InputError(f"--temperature {temperature}: give a finite number of at least 0")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"--top-p {top_p}: give more than 0 and at most 1")
    if min_p is not None and not 0 <= min_p <= 1:
        raise InputError(f"--min-p {min_p}: give a number from 0 to 1")
    filters = Filters(top_p=top_p, top_k=top_k, min_p=min_p)
    chat_with(where, model_name(model, person), temperature=temperature, filters=filters, max_new_tokens=max_new_tokens,
              seed=seed, understood=understood)  # fmt: skip


@app.command("serve")
def model_serve(
    where: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or hub name of a model, or a run folder.")],
    model: Annotated[str | None, typer.Option(help="Model of a run: base, sft or policy (default).")] = None,
    person: Person = None,
    name: Annotated[str | None, typer.Option(help="Name for clients; by default the folder's name.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    public: Annotated[bool, typer.Option("--public", help="Answer other machines too.")] = False,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the key that clients must send.")] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Responses written together.")] = 64,
    understood: Understood = False,
) -> None:
    """Serve a model under OpenAI's protocol until interrupted: chat, completions, streams, log-probabilities."""
    from charter.serving.serve import serve_model

    serve_model(where, model_name(model, person), name=name, port=port, public=public, api_key_env=api_key_env, max_rows=max_rows,
                understood=understood)  # fmt: skip


@model_app.command("merge")
def model_merge(
    where: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder of a run, RUN/sft, a model or a LoRA adapter.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder to write.")],
    base: Annotated[str | None, typer.Option(help="Base model of an adapter; by default the one that it names.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; by default as stored.")] = None,
    shard_size: Annotated[str, typer.Option(help="Size of the largest weight file: 5GB, 500MB.")] = "5GB",
    understood: Understood = False,
    as_json: Json = False,
) -> None:
    """Write a plain Hugging Face folder: a run's policy, or a LoRA adapter merged into its base."""
    from charter.tasks.merge_model import write_merged

    done = write_merged(where, out, base=base, dtype=dtype, shard_size=shard_size, understood=understood)
    words = f"{done['parameters'] / 1e6:.1f} M parameters in {done['dtype']}, {len(done['files'])} file(s) of weights"
    show(done, as_json, *([f"{done['adapter']} on {done['base']}"] if done["adapter"] else []), f"{words}: {out}")


@model_app.command("import")
def model_import(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A GGUF file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder to write.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of a tokenizer to take in place of the file's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the model of a GGUF file as a plain Hugging Face folder, its weights dequantised to float32."""
    from charter.models.formats.gguf import import_gguf

    done = import_gguf(file, out, tokenizer_of=tokenizer)
    types = ", ".join(f"{count} {name}" for name, count in done["quantization"].items())
    lines = [f"{done['unread']:,} weights of the file are not part of the model"] if done["unread"] else []
    lines.append(f"licence: {done.get('general.license', 'not named in the file')}")
    show(done, as_json, *lines, f"{done['parameters'] / 1e6:.1f} M parameters from {types} tensors: {out}")


@app.command("push")
def model_push(
    where: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a stage of it: RUN/sft, RUN/reward_model.")],
    name: Annotated[str, typer.Argument(help="Repository on the hub: NAME or OWNER/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="Visible to everybody; private by default.")] = False,
    with_data: Annotated[bool, typer.Option("--with-data", help="Prompts, responses, judgments and the report too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files without sending them; needs no network.")] = False,
    understood: Understood = False,
    as_json: Json = False,
) -> None:
    """Send the model of a run to the Hugging Face hub, with a model card, without its prompts and responses."""
    from charter.tasks.hub import gather, push

    upload = gather(where, with_data=with_data, understood=understood)
    sizes = upload.sizes()
    if dry_run:
        total = sum(size for _, size in sizes)
        result = {"repository": name, "private": not public, "files": [{"path": p, "bytes": n} for p, n in sizes]}
        lines = [f"{size:>14,} {path}" for path, size in sizes]
        show(result, as_json, *lines, f"{total:>14,} bytes in {len(sizes)} files would go to {name}, "
             + ("public" if public else "private"))  # fmt: skip
        return
    result = push(upload, name, public=public)
    show(result, as_json, f"{len(sizes)} files, {'private' if result['private'] else 'public'}: {result['url']}")


@app.command("person")
def person_command(
    run: Annotated[Path, typer.Argument(help="A run folder with reward model and policy.")],
    name: Annotated[str, typer.Option(help="The rater, as the votes have the name.")],
    votes: Annotated[Path, typer.Option(help="Folder of feedback, label project or judgments.jsonl.")],
    prompts: Annotated[Path | None, typer.Option(help="prompts.jsonl; by default beside the votes or in the run.")] = None,
    responses: Annotated[Path | None, typer.Option(help="responses.jsonl; by default beside the votes or in the run.")] = None,
    model: Annotated[str, typer.Option(help="Model of the run under the adapter: policy, or sft, which varies more.")] = "policy",
    steps: Annotated[int, typer.Option(min=1, help="Updates of the policy.")] = 30,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Of the adapter.")] = 1e-3,
    kl_coef: Annotated[float, typer.Option(min=0.0, help="Price of moving away from the model under the adapter, a nat.")] = 0.05,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer that it trains on, in tokens.")] = 64,
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train or update one person's model from their votes: a head on the run's reward model, an adapter on its policy."""
    from charter.recipe.files import as_settings
    from charter.stages.rl.settings import RLOOSettings
    from charter.tasks.person_model import update_person

    values = {"method": "rloo", "steps": steps, "learning_rate": learning_rate, "kl_coef": kl_coef, "lora": {},
              "max_new_tokens": max_new_tokens, "prompts_per_step": 16}  # fmt: skip
    settings = as_settings(values, RLOOSettings, "person")
    assert isinstance(settings, RLOOSettings)
    result = update_person(run, name, votes, settings, model=model, prompts=prompts, responses=responses, seed=seed,
                           quiet=quiet or as_json)  # fmt: skip
    words = (
        "nothing is new, nothing is trained"
        if not result["trained"]
        else f"update {result['update']}"
        + (f" resumes from update {result['update'] - 1}" if result["resumed"] else f" starts from the {model} of the run")
    )
    lines = [f"{name}: {result['votes']} votes, {result['new']} of them new, {result['held_out']} held out; {words}"]
    lines += [f"left out: {count} x {reason}" for reason, count in result["left_out"].items()]
    cut = {"cut": "answers were cut to the context of the reward model", "cut_to_equal": "held-out votes differ only beyond the "
           "context of the policy and do not measure it"}  # fmt: skip
    lines += [f"{result[key]} {text}" for key, text in cut.items() if result[key]]
    for key, verb in (("head", "predicts"), ("policy", "makes the chosen answer likelier in")):
        if (figures := result[key])["n"]:
            lines.append(f"{key}: {verb} {figures['person']:.3f} of {figures['n']} held-out votes, the common one "
                         f"{figures['common']:.3f}: {figures['difference']:+.3f}{interval_words(figures['ci'])}")  # fmt: skip
        else:
            lines.append(f"{key}: not measured, because no vote is held out yet")
    show(result, as_json, *lines, shlex.join(["charter", "chat", str(run), "--person", name]))


app.add_typer(model_app, name="model")
