"""How often the CUDA kernels between the networks' outputs and compose run their loops: as executions.py has it."""

from vocabseg.benchmarks.kernels.executions import MAYBE, Executions, warps_of
from vocabseg.runtime.kernels.device import launch


def similarity(rows: tuple[int, int], texts: tuple[int, int], depth: int) -> Executions:
    """Of half-precision embeddings and texts, of the queries' side and the regions', each of `depth` numbers."""
    grid = launch.similarity(*rows, max(texts))
    in_block = launch.SIDE_THREADS // launch.WARP
    turns = running = loads = found = 0
    for count, words in zip(rows, texts, strict=True):
        across, down, steps = -(-words // launch.SIDE_TEXTS), -(-count // launch.SIDE_ROWS), -(-depth // launch.WARP)
        turns += across * down * steps * in_block
        loads += (words * down + count * across) * steps
        last = count - launch.SIDE_ROWS * (down - 1)  # a warp has two rows
        running += across * ((down - 1) * in_block + -(-last // 2))
        found += across * down * in_block
    return Executions(warps_of(grid), {
        r"BAR": 2 * turns,
        r"LDS\.128": 5 * launch.SIDE_ROWS * turns,
        r"STS": (launch.SIDE_ROWS + launch.SIDE_TEXTS) // in_block * turns,
        MAYBE + r"LDG": loads,
        r"CS2R": found,
        r"MUFU\.RSQ R\d+, R\d+": running,
    })  # fmt: skip


def best_names(rows: int, classes: int, names: int) -> Executions:
    """Of classes with `names` names each."""
    across = -(-classes // launch.WARP)
    turns, busy = rows * across, rows * min(across, launch.ROW_THREADS // launch.WARP)
    return Executions(warps_of(launch.rows(rows)), {
        r"S2UR": busy,
        r"STG": turns,
        MAYBE + r"LDG": (2 + names) * turns,
        MAYBE + r"FMNMX": (names - 1) * turns,
    })  # fmt: skip


def classify(rows: int, regions: int, classes: int) -> Executions:
    """Of both sides, with none of the classes seen; the first `regions` of the rows have one."""
    grid, in_block = launch.rows(rows), launch.ROW_THREADS // launch.WARP
    query, region, search = (-(-count // launch.WARP) for count in (classes + 1, classes, regions))
    sides, turns = rows + regions, rows * query + regions * region
    return Executions(warps_of(grid), {
        r"BAR": in_block * (2 * rows + 4 * sides),
        r"SHFL\.BFLY": 10 * in_block * sides,
        r"LDS\.128": 4 * in_block * sides,
        MAYBE + r"LDG": grid.grid[0] * in_block + rows * search + 2 * turns + sides * region + rows,
        r"MUFU\.EX2": turns + rows * region + rows,
        MAYBE + r"STG": rows * region + rows,
    })  # fmt: skip


def compose_classes(masks: int, classes: int) -> Executions:
    """The table of class probabilities that compose reads."""
    plan = launch.compose(masks, classes, (1, 1))
    live = plan.groups * plan.steps * (launch.GROUP_CLASSES // 16)
    return Executions(warps_of(plan.prepare), {r"STG\.E\.128": 2 * live})


def find_unusable(values: int) -> Executions:
    """Of finite values."""
    grid = launch.find_unusable(values)
    return Executions(warps_of(grid), {r"@!P\d LDG": -(-values // launch.WARP), r"REDUX": 0})
