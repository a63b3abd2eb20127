"""What builds of a bundle's plans chose, for people: rows of tables, a JSON file, a picture."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from vocabseg.export.tensorrt.explain import Explanation, Kernel
from vocabseg.runtime.bundle.plans import Plan
from vocabseg.runtime.files import atomic_write

SUMMARY = ("graph", "MB", "kernels", "products", "fused attention", "reformats", "scratch MB", "seconds")
LAYERS = ("kernel", "types", "layer", "operations")
# Okabe and Ito's colours, distinguishable for colour-blind readers too.
COLOURS = {
    "FP32": "#999999", "FP16": "#56b4e9", "BF16": "#0072b2", "INT8": "#d55e00", "FP8": "#009e73",
    "fused attention": "#cc79a7", "reformats": "#f0e442", "other": "#dddddd",
}  # fmt: skip


class ExplainedPlan(msgspec.Struct, frozen=True):
    """A plan of a bundle, what is in it, and the layers of the model by node of its graph."""

    plan: Plan
    explanation: Explanation
    layers: dict[str, str]

    @property
    def title(self) -> str:
        return f"{self.plan.record.graph} {self.plan.record.precision}"

    def summary(self) -> list[str]:
        """A row under SUMMARY."""
        record, said = self.plan.record, self.explanation
        products = ", ".join(f"{count} {types}" for types, count in said.products.most_common())
        return [
            record.graph, f"{record.bytes / 1e6:.1f}", str(len(said.of_profile())), products or "none",
            str(said.attentions), str(said.reformats), f"{said.scratch_bytes / 1e6:.0f}", f"{record.build_seconds:.0f}",
        ]  # fmt: skip

    def rows(self) -> list[list[str]]:
        """A row under LAYERS for each kernel of the first profile, in the order in which they run."""
        return [
            [
                kernel.what,
                kernel.types,
                self.layer(kernel),
                ", ".join(_short([node.removeprefix("node_") for node in kernel.nodes])),
            ]
            for kernel in self.explanation.of_profile()
        ]

    def layer(self, kernel: Kernel) -> str:
        """The layers of the model whose weights a kernel reads, such as "blocks.3.mlp.c_fc"."""
        return ", ".join(_short(list(dict.fromkeys(self.layers[node] for node in kernel.nodes if node in self.layers))))


def write_json(plans: list[ExplainedPlan], path: Path) -> None:
    """Every plan with its kernels; raises OutputError."""
    content = [
        {
            "plan": one.plan.name, "graph": one.plan.record.graph, "precision": one.plan.record.precision,
            "engine": one.plan.record.engine, "version": one.plan.record.tensorrt,
            "generations": one.plan.record.generations, "gpu": one.plan.record.gpu, "bytes": one.plan.record.bytes,
            "weights_bytes": one.explanation.weights_bytes, "scratch_bytes": one.explanation.scratch_bytes,
            "products": dict(one.explanation.products), "fused_attentions": one.explanation.attentions,
            "reformats": one.explanation.reformats,
            "kernels": [
                {"what": kernel.what, "layers": one.layer(kernel), **msgspec.to_builtins(kernel)}
                for kernel in one.explanation.kernels
            ],
        }
        for one in plans
    ]  # fmt: skip
    with atomic_write(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode({"plans": content}), indent=2) + b"\n")


def draw(plans: list[ExplainedPlan], path: Path) -> None:
    """Draw the kernels of each plan by what they do, and its scratch memory, into a PNG file; raises OutputError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 1.6 + 0.55 * len(plans)), dpi=110, layout="constrained")
    kernels, scratch = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    titles, drawn = [one.title for one in plans], set()
    for row, one in enumerate(plans):
        left = 0
        for name, count in _shares(one.explanation).items():
            label = f"{name} products" if name[-1].isdigit() else name
            shown = None if name in drawn else label  # the legend has each once
            kernels.barh(row, count, left=left, color=COLOURS[name], label=shown, edgecolor="white")
            drawn.add(name)
            left += count
        memory = one.explanation.scratch_bytes / 1e6
        scratch.barh(row, memory, color="#777777")
        scratch.annotate(f" {memory:.0f}", (memory, row), va="center", fontsize=8)
    kernels.set_yticks(range(len(plans)), titles)
    kernels.invert_yaxis()
    kernels.set_xlabel("kernels")
    scratch.set_xlabel("scratch memory, MB")
    scratch.margins(x=0.25)
    for axes in (kernels, scratch):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _shares(said: Explanation) -> Mapping[str, int]:
    """How many kernels of the first profile do what: products by the type of their inputs, and the rest."""
    shares: dict[str, int] = {}
    for kernel in said.of_profile():
        name = kernel.inputs[0] if kernel.what == "product" and kernel.inputs else kernel.what
        name = {"reformat": "reformats"}.get(name, name)
        name = name if name in COLOURS else "other"
        shares[name] = shares.get(name, 0) + 1
    return {name: shares[name] for name in COLOURS if name in shares}


def _short(names: list[str]) -> list[str]:
    """Names for a table: the first two, and how many more."""
    return names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
