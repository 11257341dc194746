"""A Markdown table of several runs: python benchmarks/runs_table.py runs/demo-0 runs/demo-1 runs/demo-2"""

from __future__ import annotations

import json
import sys
from pathlib import Path

METRICS = ("harmful_compliance", "over_refusal", "helpfulness", "kl", "response_tokens", "missing_eos")


def cell(report: dict, name: str, arm: str) -> str:
    found = [m for m in report["metrics"] if m["name"] == name and m["arm"] == arm and m["group"] is None]
    if not found:
        return "–"
    if found[0]["value"] is None:
        return "unscored"
    low, high = found[0]["ci"]
    return f"{found[0]['value']:.3f} [{low:.3f}, {high:.3f}]"


def against(report: dict, name: str, a: str, b: str) -> str:
    """A difference in points with its interval."""
    found = [c for c in report["contrasts"] if (c["name"], c["a"], c["b"]) == (name, a, b)]
    if not found or found[0]["ci"] is None:
        return "–"
    low, high = found[0]["ci"]
    return f"{100 * found[0]['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def main(folders: list[str]) -> None:
    reports = [json.loads((Path(folder) / "report.json").read_text()) for folder in folders]
    arms = [arm["name"] for arm in reports[0]["arms"]]
    print("| seed | metric | " + " | ".join(arms) + " |\n|---|---|" + "---|" * len(arms))
    for report in reports:
        for name in METRICS:
            print(f"| {report['seed']} | {name} | " + " | ".join(cell(report, name, arm) for arm in arms) + " |")
    rates = ("harmful_compliance", "over_refusal", "helpfulness")
    for a in ("base", "best_of_n"):
        if a in arms:
            print(f"\n| seed | verdict | {a} to policy, points: " + " | ".join(rates) + " |\n|---|---|---|---|---|")
            for report in reports:
                points = " | ".join(against(report, name, a, "policy") for name in rates)
                print(f"| {report['seed']} | {report['verdict']['word']} | {points} |")
    print("\n| seed | judge accuracy | reward model, held-out pairs | reward model, known pairs | KL, ratio at step 0 "
          "| seconds by stage | seconds |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for report in reports:
        judge = report["judges"][0]
        model, known = report["reward_model"], report["reward_model_on_labelled_pairs"]
        first = report["curves"]["rl"][0]
        seconds = {stage["name"]: stage["wall_s"] for stage in report["stages"]}
        stages = ", ".join(f"{name} {wall:.0f}" for name, wall in seconds.items())
        groups = ", ".join(f"{name} {part['accuracy']:.2f}" for name, part in model["groups"].items())
        print(f"| {report['seed']} | {judge['accuracy']:.3f} | {model['accuracy']:.3f} ({groups}; shorter wins "
              f"{model['baseline_shorter_wins']:.3f}) | {known['accuracy']:.3f} | {first['kl']:.1e}, "
              f"{first['first_ratio']:.6f} | {stages} | {sum(seconds.values()):.0f} |")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
