"""How many instructions a CUDA kernel runs: its machine code, and how often a few of the instructions are known to run.

What flows into a block of instructions flows out of it, so the counts of a few landmarks bound those of all blocks: a
linear program finds the fewest and the most instructions that agree with them. No GPU is needed, and no knowledge of
how the compiler unrolled a loop.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vocabseg.runtime.errors import EngineError


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: where it stands, in bytes, and its text, the predicate in front."""

    address: int
    text: str

    @property
    def predicated(self) -> bool:
        return self.text.startswith("@")

    @property
    def operation(self) -> str:
        """Without a predicate."""
        return self.text.split(None, 1)[1] if self.predicated else self.text

    @property
    def target(self) -> int | None:
        """Where a branch leads; None for other instructions."""
        found = re.fullmatch(r"BRA .*?(0x[0-9a-f]+)", self.operation)
        return None if found is None else int(found[1], 16)

    @property
    def always_leaves(self) -> bool:
        """Whether what follows is reached from elsewhere only."""
        ends = r"BRA 0x[0-9a-f]+|EXIT|RET\S* .*|CALL\S* .*|BRX .*|JMP .*"
        return not self.predicated and re.fullmatch(ends, self.operation) is not None

    @property
    def ends_block(self) -> bool:
        return self.always_leaves or self.operation.startswith(("BRA", "EXIT"))


def disassembler() -> str:
    """cuobjdump of a CUDA toolkit, or the one that comes with triton; raises EngineError."""
    found = shutil.which("cuobjdump") or shutil.which("cuobjdump", path="/usr/local/cuda/bin")
    if found is not None:
        return found
    triton = importlib.util.find_spec("triton")
    for folder in [] if triton is None else triton.submodule_search_locations or []:
        path = Path(folder, "backends", "nvidia", "bin", "cuobjdump")
        if path.is_file():
            return str(path)
    raise EngineError(
        "cuobjdump, which lists the kernels' instructions, was not found: put the bin of a CUDA toolkit on PATH, or "
        "install triton"
    )


def listing(fatbin: bytes, architecture: str = "sm_90") -> dict[str, list[Instruction]]:
    """The instructions of every kernel, in order; raises EngineError if there are none for the architecture."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernels.fatbin")
        path.write_bytes(fatbin)
        run = subprocess.run(
            [disassembler(), "-sass", "-arch", architecture, str(path)], capture_output=True, text=True, check=False
        )
    kernels = parse(run.stdout)
    if run.returncode != 0 or not kernels:
        reason = run.stderr.strip()[:200] or "the kernels were built without it"
        raise EngineError(f"cuobjdump lists no instructions for {architecture}: {reason}")
    return kernels


def parse(text: str) -> dict[str, list[Instruction]]:
    """cuobjdump's output, by kernel."""
    kernels: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if (name := re.search(r"Function : (\w+)", line)) is not None:
            kernels[name[1]] = []
        elif kernels and (found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line)) is not None:
            kernels[list(kernels)[-1]].append(Instruction(int(found[1], 16), found[2]))
    return kernels


def flow(code: Sequence[Instruction]) -> tuple[list[list[Instruction]], list[tuple[int, int]]]:
    """Blocks, and edges (from, to) between those that are reached; -1 is outside.

    Not followed are calls (of a division's rare cases) and BRA.DIV, which is for warps whose lanes have parted.
    """
    targets = {instruction.target for instruction in code}
    blocks: list[list[Instruction]] = [[]]
    for before, instruction in zip([None, *code], code, strict=False):
        if blocks[-1] and (instruction.address in targets or (before is not None and before.ends_block)):
            blocks.append([])
        blocks[-1].append(instruction)
    place = {block[0].address: k for k, block in enumerate(blocks)}
    edges = [(-1, 0)]
    for k, block in enumerate(blocks):
        last = block[-1]
        if last.operation.startswith("EXIT"):
            edges.append((k, -1))
        if last.target is not None and not last.operation.startswith("BRA.DIV"):
            edges.append((k, place[last.target]))
        if not last.always_leaves and k + 1 < len(blocks):
            edges.append((k, k + 1))
    reached: set[int] = set()
    grown = {-1}
    while grown != reached:
        reached, grown = grown, grown | {target for source, target in edges if source in grown}
    return blocks, [edge for edge in edges if edge[0] in reached]


def instructions(code: Sequence[Instruction], warps: float, landmarks: Mapping[str, float]) -> tuple[float, float]:
    """The fewest and the most instructions that `warps` warps run.

    landmarks: how often the instructions whose text begins with a regular expression run, all of them together. Those
    with a predicate may be issued more often, unless the expression asks for one: then issues are counted. Raises
    EngineError where no flow agrees with the landmarks, or they leave a loop unbounded: then the kernel is no longer
    the one that they describe.
    """
    from scipy.optimize import linprog

    blocks, edges = flow(code)
    arrives = np.array([[target == k for _, target in edges] for k in range(len(blocks))], float)
    leaves = np.array([[source == k for source, _ in edges] for k in range(len(blocks))], float)
    entered = np.array([[source == -1 for source, _ in edges]], float)
    equal, values, less, limits = [arrives - leaves, entered], [0.0] * len(blocks) + [1.0], [], []
    for pattern, count in landmarks.items():
        hits = [[i for i in block if re.match(pattern, i.text)] for block in blocks]
        issued = np.array([len(found) for found in hits]) @ arrives
        certain = np.array([sum(not i.predicated for i in found) for found in hits]) @ arrives
        if not issued.any():
            raise EngineError(f"no instruction matches {pattern!r}: the kernel has changed, describe it anew")
        if pattern.startswith("@") or (issued == certain).all():
            equal.append(issued[None])
            values.append(count / warps)
        else:
            less += [certain, -issued]
            limits += [count / warps, -count / warps]
    total = np.array([len(block) for block in blocks]) @ arrives
    found = []
    for sign in (1, -1):
        run = linprog(
            sign * total,
            A_ub=np.array(less) if less else None, b_ub=limits or None, A_eq=np.concatenate(equal), b_eq=values,
        )  # fmt: skip
        if run.status != 0:
            raise EngineError(f"the counts {dict(landmarks)} do not fit the kernel: {run.message}; describe it anew")
        found.append(sign * run.fun * warps)
    return found[0], found[1]
