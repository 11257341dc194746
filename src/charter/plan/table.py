"""The plan as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from charter.reading.prompts import KINDS
from charter.run.progress import duration, size


def plan_table(figures: dict[str, Any]) -> list[str]:
    """The plan as lines for people."""
    lines = [
        figures["title"],
        f"model     {amount(figures['parameters'])} parameters, {figures['layers']} layers, hidden size "
        f"{figures['hidden_size']}, vocabulary {figures['vocabulary']}"
        + (f"; LoRA trains {amount(figures['adapter_parameters'])}" if figures["adapter_parameters"] else ""),
        *data_lines(figures),
        f"machine   {figures['device']}, {size(figures['memory_bytes'])}, "
        f"{figures['operations_per_second'] / 1e9:.0f} billion operations a second",
        "",
        f"{'tokens:':12}{'generated':>12}{'scored':>12}{'trained on':>12}{'peak memory':>14}{'time':>10}",
    ]
    for stage in figures["stages"]:
        lines.append(
            f"{stage['stage']:12}{amount(stage['generated']):>12}{amount(stage['scored']):>12}"
            f"{amount(stage['trained']):>12}{size(stage['peak_bytes']):>14}{duration(stage['seconds']):>10}"
        )
    peak = next(stage for stage in figures["stages"] if stage["stage"] == figures["peak_stage"])
    parts = ", ".join(f"{key.replace('_', ' ')} {size(value)}" for key, value in peak["memory"].items())
    lines += [
        f"{'all':12}{'':36}{size(figures['peak_bytes']):>14}{duration(figures['seconds']):>10}",
        "",
        f"peak      {size(figures['peak_bytes'])} in {figures['peak_stage']} ({parts})",
        f"          {'fits into' if figures['fits'] else 'does NOT fit into'} the {size(figures['memory_bytes'])} of "
        + ("this GPU" if figures["device"] == "cuda" else "this machine")
        + ("" if figures["fits"] else f"; {figures['would_fit']}"),
        disk_line(figures),
        *time_lines(figures),
        *(endpoint_line(name, requests) for name, requests in figures["endpoints"].items()),
        "",
        "Time is a rough estimate. It and the rest assume:",
        *(f"  - {words}" for words in figures["assumptions"]),
    ]
    return lines


def disk_line(figures: Mapping[str, Any]) -> str:
    disk = figures["disk"]
    words = f"disk      {size(disk['most'])} in the run folder at most: models of {size(disk['models'])}"
    if disk["checkpoint"]:
        words += f", a checkpoint of {size(disk['checkpoint'])} and for a moment the next"
    return f"{words}; {size(figures['free_disk_bytes'])} are free here"


def time_lines(figures: Mapping[str, Any]) -> list[str]:
    """What would take less time, where the recipe takes more than the limit."""
    shorter = figures["shorter"]
    if shorter is None:
        return []
    takes = f"{duration(shorter['seconds'])} and {size(shorter['peak_bytes'])}"
    limit = duration(figures["limit_seconds"])
    if not shorter["set"]:
        return [f"time      more than {limit}, and no setting that Charter knows would shorten it"]
    words = f"these settings take {takes}:" if shorter["fits"] else f"the shortest recipe that Charter can propose takes {takes}:"
    return [f"time      more than {limit}; {words}", f"          {' '.join(f'--set {change}' for change in shorter['set'])}"]


def data_lines(figures: Mapping[str, Any]) -> list[str]:
    """What the recipe's files hold."""
    counts, tokens, lines = figures["prompts"], figures["prompt_tokens"], []
    if counts:
        there = [kind for kind in KINDS if f"train {kind}" in counts or f"test {kind}" in counts]
        train, test = (", ".join(f"{counts.get(f'{part} {kind}', 0)} {kind.replace('_', '-')}" for kind in there)
                         for part in ("train", "test"))  # fmt: skip
        lines.append(f"prompts   to train on: {train}; held out: {test}; {tokens['mean']:.0f} tokens on average, at most "
                     f"{tokens['longest']} in a sample")  # fmt: skip
    for name, title in (("examples", "examples"), ("pairs", "pairs")):
        if figures[name]:
            lines.append(f"{title:9} {figures[name]} from files, {figures['row_tokens'][name]:.0f} tokens a row on average")
    return lines


def endpoint_line(name: str, requests: Mapping[str, Any]) -> str:
    money = "no prices given" if requests["money"] is None else f"money {requests['money']:.4g}"
    short = f"; more than {' and '.join(requests['too_small'])} allows" if requests["too_small"] else ""
    return (
        f"endpoint  {name}: at most {requests['requests']} requests to {requests['model']} at {requests['url']}, "
        f"{amount(requests['input_tokens'])} tokens read, {amount(requests['output_tokens'])} written, {money}{short}"
    )


def amount(n: float) -> str:
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= scale:
            return f"{n / scale:.1f}{unit}"
    return f"{n:.0f}"
