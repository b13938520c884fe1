"""The passes over an image that compute a network: which maps each keeps on disk, and in what pieces it runs.

A sum over a whole map must be complete before the first place that depends on it is computed. So the steps have levels:
those of level n + 1 depend on a sum of level n. A pass computes the steps of one level, piece by piece, and keeps the
maps that later levels read. Where a map can be computed from a smaller one of the same stride, the smaller one is kept
instead: of the queries, the input of their projection; of a squeezed map, the input of its block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from .regions import Extent, Grid, Region, hull
from .steps import SOURCE, Program, Step

#: Bytes that the maps of one piece may take together, margins left out.
PIECE_BYTES = 48 << 20
_WASTE = 1.3  # arithmetic with margins over that without, above which a pass is divided
_GAIN = 0.97  # of the arithmetic with all margins, which a division must at least bring
_TRIALS = 24
_ITEMSIZE = {"uint8": 1, "uint16": 2, "int32": 4, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Pass:
    """One walk over the pieces of an image.

    Attributes:
        keeps: maps that are written to disk.
        sums: reductions whose sums over the pieces are added up.
        steps: what a piece computes for them, in order; the steps of earlier levels whose maps are kept are read.
        reads: maps that are read from disk, or the image.
        functions: steps without places that must be computed before the first piece, in order.
        grid: the pieces.
        arithmetic: multiply-accumulates of all pieces, margins left out.
    """

    keeps: tuple[str, ...]
    sums: tuple[str, ...]
    steps: tuple[Step, ...]
    reads: tuple[str, ...]
    functions: tuple[Step, ...]
    grid: Grid
    arithmetic: int

    @property
    def targets(self) -> tuple[str, ...]:
        """What a piece computes."""
        return self.keeps + self.sums


@dataclass(frozen=True)
class Plan:
    """The passes of a program, and the steps without places that are computed after the last of them."""

    program: Program
    passes: tuple[Pass, ...]
    functions: tuple[Step, ...]

    def overhead(self, part: Pass) -> float:
        """Arithmetic of a piece in the middle of the image with its margins, over that without them."""
        regions = self.needs(part, _middle(part.grid))
        computed = sum(_work(step, regions[step.name].places) for step in part.steps if step.name in regions)
        return computed * part.grid.count / max(part.arithmetic, 1)

    def work(self) -> float:
        """Arithmetic of all passes with margins."""
        return sum(self.overhead(part) * part.arithmetic for part in self.passes)

    def last_reader(self, name: str) -> int:
        """Index of the last pass that reads a kept map; of an output, the number of passes."""
        if name in self.program.outputs:
            return len(self.passes)
        return max((index for index, part in enumerate(self.passes) if name in part.reads), default=-1)

    def disk_bytes(self, dtype: str) -> int:
        """Largest size of the maps that are kept at the same time, if their values are ``dtype``."""
        largest = 0
        for index in range(len(self.passes)):
            kept = (name for part in self.passes[: index + 1] for name in part.keeps)
            largest = max(largest, sum(self.map_bytes(name, dtype) for name in kept if self.last_reader(name) >= index))
        return largest

    def map_bytes(self, name: str, dtype: str) -> int:
        """Size of a kept map."""
        step = self.program.steps[name]
        assert step.extent is not None
        return step.channels * step.extent.places * _ITEMSIZE[step.dtype or dtype]

    def wanted(self, part: Pass, index: int) -> dict[str, list[Region]]:
        """The regions of the maps that piece ``index`` of a pass keeps or sums."""
        steps, found = self.program.steps, dict[str, list[Region]]()
        for name in part.targets:
            region = part.grid.piece(index, map_extent(steps, name))
            for each in steps[name].inputs if steps[name].reduction else (name,):
                if not region.is_empty:
                    found.setdefault(each, []).append(region)
        return found

    def needs(self, part: Pass, index: int) -> dict[str, Region]:
        """The region of every step and every map that piece ``index`` of a pass computes or reads."""
        steps, found = self.program.steps, self.wanted(part, index)
        regions: dict[str, Region] = {}
        for step in reversed(part.steps):
            if step.name not in found:  # the piece is beyond the end of its map
                continue
            regions[step.name] = out = hull(found[step.name])
            assert step.operation is not None
            needs = step.operation.needs(out, [steps[name].extent for name in step.inputs])
            for name, need in zip(step.inputs, needs, strict=True):
                if need is not None:
                    found.setdefault(name, []).append(need)
        return regions | {name: hull(found[name]) for name in part.reads if name in found}


def map_extent(steps: Mapping[str, Step], name: str) -> Extent:
    """Size of the map that a step computes, or that a reduction sums."""
    step = steps[name]
    extent = step.extent if step.extent is not None else steps[step.inputs[0]].extent
    assert extent is not None
    return extent


def plan(program: Program, *, side: int | None = None, memory: int = PIECE_BYTES) -> Plan:
    """Divide a program into passes.

    Where margins would cost too much, because many layers follow each other without a sum, a pass is divided at a small
    map in the middle of them.

    Args:
        program: the steps.
        side: of the pieces in pixels, a multiple of :func:`coarsest_stride`; default: as many as fit into ``memory``.
        memory: bytes for the maps of one piece.
    """
    breaks: set[str] = set()
    tried: set[str] = set()
    best = _divide(program, breaks, None, memory)
    for _ in range(_TRIALS):
        wasteful = [part for part in best.passes if best.overhead(part) > _WASTE]
        found = (_find_break(best, part, tried) for part in wasteful)
        further = next((name for name in found if name is not None), None)
        if further is None:
            break
        tried.add(further)
        divided = _divide(program, breaks | {further}, None, memory)
        if divided.work() < _GAIN * best.work():
            best = divided
            breaks.add(further)
    return best if side is None else _divide(program, breaks, side, memory)


def _find_break(divided: Plan, part: Pass, tried: set[str]) -> str | None:
    """The smallest map about half-way through the margin of a pass, but none of ``tried``; ``None``: there is none."""
    index = _middle(part.grid)
    regions, steps = divided.needs(part, index), divided.program.steps
    margins: dict[str, float] = {}
    for name, region in regions.items():
        extent = map_extent(steps, name)
        inner = part.grid.piece(index, extent)
        margins[name] = (region.height - inner.height) * float(extent.stride)
    widest = max(margins[name] for name in part.reads)
    middle = [step for step in part.steps if widest / 4 <= margins.get(step.name, 0) <= widest * 3 / 4]

    def size(step: Step) -> tuple[float, float]:
        assert step.extent is not None
        return step.channels / float(step.extent.stride) ** 2, abs(margins[step.name] - widest / 2)

    left_out = tried | set(part.keeps)
    found = min((step for step in middle if step.name not in left_out), key=size, default=None)
    return None if found is None else found.name


def _middle(grid: Grid) -> int:
    return grid.rows // 2 * grid.columns + grid.columns // 2


def _divide(program: Program, breaks: set[str], side: int | None, memory: int) -> Plan:
    """The passes, if the maps ``breaks`` must be complete before they are read."""
    levels = _levels(program, breaks)
    kept = _choose_kept(program, levels)
    steps, passes = program.steps, []
    available: set[str] = {SOURCE}
    computed: set[str] = set()  # functions
    for level in range(max(levels.values()) + 1):
        keeps = tuple(name for name in kept if levels[name] == level)
        sums = tuple(step.name for step in steps.values() if step.reduction and levels[step.name] == level)
        if not keeps and not sums:
            continue
        chosen, reads = _closure(program, (*keeps, *sums), available)
        functions = _functions(program, chosen, computed)
        computed |= {step.name for step in functions}
        shown = side or _fitting_side(program, chosen, reads, memory)
        grid = Grid(program.image.height, program.image.width, shown)
        passes.append(Pass(keeps, sums, chosen, reads, functions, grid, _arithmetic(chosen)))
        available |= set(keeps)
    outputs = [steps[name] for name in program.outputs]
    return Plan(program, tuple(passes), _functions(program, outputs, computed))


def coarsest_stride(program: Program) -> int:
    """The smallest number of pixels that is a multiple of every stride."""
    return lcm(*(step.extent.stride.numerator for step in program.steps.values() if step.extent is not None))


def _levels(program: Program, breaks: set[str]) -> dict[str, int]:
    """The level of each step: a sum as early, a map as late as possible, and ``breaks`` before what reads them."""
    steps, users = program.steps, program.users()
    earliest: dict[str, int] = {}
    for name, step in steps.items():
        after = (earliest[each] + (steps[each].reduction is not None or each in breaks) for each in step.inputs)
        earliest[name] = max(after, default=0)
    last = max(earliest.values())
    levels: dict[str, int] = {}
    for name, step in reversed(list(steps.items())):
        if step.reduction is not None or step.extent is None:
            levels[name] = earliest[name]
        else:  # an output that no step reads waits for the last pass
            levels[name] = min((levels[user.name] - (name in breaks) for user in users[name]), default=last)
    return levels


def _choose_kept(program: Program, levels: Mapping[str, int]) -> list[str]:
    """The maps to keep, in the order of their steps."""
    steps, users = program.steps, program.users()
    wanted = {
        name
        for name, step in steps.items()
        if name != SOURCE
        and step.extent is not None
        and (name in program.outputs or any(levels[user.name] > levels[name] for user in users[name]))
    }
    kept = wanted & set(program.outputs)
    groups: dict[tuple[int, Fraction], set[str]] = {}
    for name, step in steps.items():
        if step.extent is not None and name != SOURCE:
            groups.setdefault((levels[name], step.extent.stride), set()).add(name)
    for group in groups.values():
        if sinks := (wanted & group) - kept:
            kept |= _cheapest_cut(steps, group, sinks)
    return [name for name in steps if name in kept]


def _cheapest_cut(steps: Mapping[str, Step], group: set[str], sinks: set[str]) -> set[str]:
    """The maps of a group, of the fewest channels together, from which all of ``sinks`` can be computed.

    This is a minimum cut through vertices; among equal ones the one that leaves the least to compute. What enters the
    group from outside cannot be cut.
    """
    inflow = {name: [each for each in steps[name].inputs if each in group] for name in group}
    entries = {
        name for name in group if len(inflow[name]) < sum(steps[n].extent is not None for n in steps[name].inputs)
    }
    # Each map is an edge from (name, 0) to (name, 1); a step that reads it is an edge without limit from there.
    room: dict[tuple[object, object], int] = {}
    after: dict[object, set[object]] = {}

    def connect(a: object, b: object, capacity: int) -> None:
        room[a, b], room[b, a] = capacity, room.get((b, a), 0)
        after.setdefault(a, set()).add(b)
        after.setdefault(b, set()).add(a)

    endless = 1 << 40
    for name in sorted(group):
        connect((name, 0), (name, 1), steps[name].channels)
        for each in inflow[name]:
            connect((each, 1), (name, 0), endless)
    for name in sorted(entries):
        connect("source", (name, 0), endless)
    for name in sorted(sinks):
        connect((name, 1), "sink", endless)
    while path := _path(after, room, "source", "sink"):
        flow = min(room[edge] for edge in path)
        for a, b in path:
            room[a, b] -= flow
            room[b, a] += flow
    reaching = _reaching(after, room, "sink")
    return {name for name in group if (name, 1) in reaching and (name, 0) not in reaching}


def _path(
    after: Mapping[object, set[object]], room: Mapping[tuple[object, object], int], start: object, end: object
) -> list[tuple[object, object]]:
    """A shortest path of edges with room, empty if there is none."""
    before: dict[object, object] = {start: start}
    queue = deque([start])
    while queue and end not in before:
        here = queue.popleft()
        for there in sorted(after[here], key=repr):
            if there not in before and room[here, there] > 0:
                before[there] = here
                queue.append(there)
    path = []
    while end in before and end != start:
        path.append((before[end], end))
        end = before[end]
    return path[::-1]


def _reaching(
    after: Mapping[object, set[object]], room: Mapping[tuple[object, object], int], end: object
) -> set[object]:
    """The vertices from which edges with room lead to ``end``."""
    found, queue = {end}, deque([end])
    while queue:
        here = queue.popleft()
        for there in after[here]:
            if there not in found and room[there, here] > 0:
                found.add(there)
                queue.append(there)
    return found


def _closure(program: Program, targets: Iterable[str], available: set[str]) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """The steps between the available maps and the targets, in order, and the available maps that they read."""
    steps, chosen, reads = program.steps, set[str](), set[str]()
    queue = deque[str]()
    for name in targets:
        queue.extend(steps[name].inputs if steps[name].reduction else (name,))
    while queue:
        name = queue.popleft()
        if name in available:
            reads.add(name)
        elif name not in chosen and steps[name].extent is not None:
            chosen.add(name)
            queue.extend(steps[name].inputs)
    ordered = tuple(step for name, step in steps.items() if name in chosen)
    return ordered, tuple(name for name in steps if name in reads)


def _functions(program: Program, chosen: Iterable[Step], computed: set[str]) -> tuple[Step, ...]:
    """The steps without places that ``chosen`` read, in order, without those computed before."""
    found, queue = set[str](), deque(chosen)
    while queue:
        step = queue.popleft()
        inputs = (step.name, *step.inputs) if step.extent is None else step.inputs
        for name in inputs:
            each = program.steps[name]
            if each.function is not None and name not in found:
                found.add(name)
                queue.append(each)
    return tuple(step for name, step in program.steps.items() if name in found and name not in computed)


def _fitting_side(program: Program, chosen: Iterable[Step], reads: Iterable[str], memory: int) -> int:
    """The largest side of pieces, a power of two times the coarsest stride, whose maps fit into the memory."""
    coarsest = coarsest_stride(program)
    per_pixel = _peak_bytes_per_pixel(program, list(chosen), list(reads))
    side = coarsest
    while (2 * side) ** 2 * per_pixel <= memory and side < max(program.image[:2]):
        side *= 2
    return side


def _peak_bytes_per_pixel(program: Program, chosen: list[Step], reads: list[str]) -> float:
    """Bytes of the maps that exist at the same time, for each pixel of the image."""
    last_use = {name: index for index, step in enumerate(chosen) for name in step.inputs}
    size = {
        name: 4 * step.channels / float(step.extent.stride) ** 2
        for name, step in program.steps.items()
        if step.extent is not None
    }
    live = {name: size[name] for name in reads}
    peak = sum(live.values())
    for index, step in enumerate(chosen):
        live[step.name] = size[step.name]
        peak = max(peak, sum(live.values()))
        for name in step.inputs:
            if last_use[name] == index:
                live.pop(name, None)
    return peak


def _arithmetic(chosen: Iterable[Step]) -> int:
    """Multiply-accumulates, with something for the memory that each map takes."""
    return sum(_work(step, step.extent.places) for step in chosen if step.extent is not None)


def _work(step: Step, places: int) -> int:
    return (step.arithmetic + 4 * step.channels) * places
