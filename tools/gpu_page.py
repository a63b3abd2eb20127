"""The page of a run on a GPU host, for benchmarks/results/: every figure beside its target or floor."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

# Microseconds that the kernels should take on an H200, at the published sizes.
TARGETS = {"region_boxes": 40, "crop_regions": 60, "compose": 120}


def page(results: dict[str, Any]) -> str:
    """Markdown of what gpu_host.py keeps: gpu, date, python, steps, and figures by step."""
    lines = [f"# {results['gpu']}, {results['date']}", "", f"`python tools/gpu_host.py`, Python {results['python']}."]
    figures = dict(results["figures"])
    if "kernels" in figures:
        lines += _kernels(figures.pop("kernels"))
    for name, rows in figures.items():
        if isinstance(rows, list):
            lines += ["", f"## {name}", "", "| | measured | | target |", "|---|---|---|---|"]
            lines += [_row(row) for row in rows]
        else:
            lines += ["", f"## {name}", "", f"The report is {name}.md, its figures stand in the JSON beside this page."]
    lines += ["", "## Steps", "", "| step | state | seconds | last line |", "|---|---|---|---|"]
    for step in results["steps"]:
        note = step["note"].replace("|", "\\|")
        lines.append(f"| {step['name']} | {step['state']} | {step['seconds']:.0f} | {note} |")
    tail = next((step["tail"].strip() for step in results["steps"] if step["name"] == "doctor"), "")
    return "\n".join([*lines, *(["", "```", tail, "```"] if tail else [])]) + "\n"


def _kernels(found: dict[str, Any]) -> list[str]:
    title = f"A copy reaches {found['copy_bandwidth']:.0f} GB/s; the floor is the kernel's bytes at that rate."
    lines = ["", "## The image kernels", "", title, "", "| kernel | us | floor, us | target, us |", "|---|---|---|---|"]
    for row in found["kernels"]:
        target = TARGETS.get(row["name"].split(",")[0])
        shown = "" if target is None else f"{target}{', missed' * (row['median'] > target)}"
        lines.append(f"| {row['name']} | {row['median']:.1f} | {row['median'] * row['share']:.1f} | {shown} |")
    if found["torch_loop"]:
        median = statistics.median(found["torch_loop"])
        lines.append(f"| PyTorch's loop over the regions, which crop_regions replaces | {median:.0f} | | |")
    return lines


def _row(row: dict[str, Any]) -> str:
    missed = (
        row["target"] is not None and (row["value"] > row["target"]) == row["most"] and row["value"] != row["target"]
    )
    bound = "at most" if row["most"] else "at least"
    target = "" if row["target"] is None else f"{bound} {row['target']:g}{', missed' * missed}"
    return f"| {row['name']} | {row['value']:.5g} | {row['unit']} | {target} |"


if __name__ == "__main__":
    print(page(json.loads(Path(sys.argv[1]).read_text())))
