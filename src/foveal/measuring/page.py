"""The Markdown page of a file of rows: what was compared on one machine, beginning with where others are ahead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import atomic_write, ensure_folder
from . import budget
from .presets.figures import draw_quality, plots_of
from .presets.headline import HEADER, cells_of, noise_note
from .presets.headline import KIND as PAIR
from .presets.laws import KIND as LAW
from .presets.laws import LAW_NOTE, STEEP, draw_laws, law_table, steep
from .presets.pairs import PAIRS, PEERS
from .row_file import Row, machine_of, read_rows

_PACKAGES = ("foveal", "torch", "onnxruntime", "openvino", "timm", "transformers", "numpy", "python")


def write_page(rows: Path, page: Path) -> None:
    """Write the page, and its figures beside it, ``<page>.quality.png`` and ``<page>.laws.png``.

    Args:
        rows: file that ``--resume`` wrote.
        page: the Markdown file.

    Raises:
        DataError: another file.
        InputError: a file cannot be read or written.
    """
    measured = read_rows(rows)
    pairs = [row for row in measured if row["kind"] == PAIR]
    laws = [row for row in measured if row["kind"] == LAW]
    budgets = [row for row in measured if row["kind"] == budget.KIND]
    ensure_folder(page.parent)
    parts = [_head(rows, page)]
    if pairs:
        parts += [
            _behind(pairs),
            _method(machine_of(rows), pairs),
            *_groups(pairs),
            *_plots(pairs, page),
            _costs(pairs),
        ]
    else:
        parts.append(_machine_text(machine_of(rows)))
    if laws:
        figure = page.with_suffix(".laws.png")
        draw_laws(laws, figure)
        parts.append(_laws(laws, figure))
    if budgets:
        parts.append(_budgets(budgets))
    with atomic_write(page) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is the header."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in table)
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _head(rows: Path, page: Path) -> str:
    target = page.name if page.is_absolute() else page.as_posix()
    command = f"foveal bench --preset headline --resume {rows.name} --page {target}"
    return (
        "# Compared with other networks\n\n"
        "This page is for those who choose between networks. It is generated from measurements on one machine; do not\n"
        "edit it. In a checkout of the repository, the command repeats them on yours; the results may differ.\n\n"
        f"```bash\npip install '.[torch,timm,openvino]' transformers\n{command}\n```"
    )


def _behind(rows: Sequence[Row]) -> str:
    """Rows in which the peer is faster, and those in which only our runtime makes the difference."""
    measured = [row for row in rows if "fastest" in row.get("ratios", {})]
    behind = sorted((r for r in measured if _gain(r, "fastest") < 1), key=lambda row: _gain(row, "fastest"))
    by_engine = sorted(
        (r for r in measured if r not in behind and _gain(r, "same") < 1), key=lambda r: _gain(r, "same")
    )
    text = "## Where others are ahead\n\n"
    if not measured:
        return text + "Nothing was measured."
    text += f"In {len(behind)} of {len(measured)} rows the other network is faster, each in its fastest runtime."
    if behind:
        text += "\n\n" + markdown([(*HEADER, "reason"), *((*cells_of(r), _reason(r)) for r in behind)])
    if by_engine:
        text += (
            f"\n\nIn {len(by_engine)} more, our network is faster only because of its runtime: in the fastest runtime "
            "of the other network, the other network is faster.\n\n"
        )
        text += markdown([HEADER, *(cells_of(row) for row in by_engine)])
    return text


def _gain(row: Row, name: str) -> float:
    return row["ratios"].get(name, {"ratio": float("inf")})["ratio"]


def _reason(row: Row) -> str:
    key = row["key"]
    found = (pair.reason for pair in PAIRS if (pair.ours, pair.peer) == (key["ours"], key["peer"]))
    return next(found, "") or "not examined"


def _machine_text(machine: Row) -> str:
    versions = ", ".join(f"{name} {machine[name]}" for name in _PACKAGES if name in machine)
    return f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['os']}; {versions}."


def _method(machine: Row, rows: Sequence[Row]) -> str:
    rounds = sorted(row["rounds"] for row in rows if "rounds" in row)
    busy = max((row.get("load") or 0 for row in rows), default=0)
    failed = [row for row in rows if "failed" in row]
    lines = [
        "## How it is measured",
        "",
        _machine_text(machine),
        "",
        "Every row is measured in a process of its own, bound to as many cores as it has threads. Both networks are",
        "opened in every runtime, with random weights, and all of them take turns; a ratio is computed for each round,",
        f"and the median is shown. Rows have {rounds[0]} to {rounds[-1]} rounds."
        if rounds
        else "and the median is shown.",
        "",
        "- **Ratios** say how many times faster our network is. *eager*: both networks as torch modules, as they are",
        "  created. *ONNX Runtime* and *OpenVINO*: both in this runtime. *algorithm*: both in the runtime in which the",
        "  other network is fastest. *engine*: our network in its fastest runtime, relative to our network in the",
        "  runtime of *algorithm*. *together*: each in its fastest runtime. *paper*: the claim of a paper, for other",
        "  hardware, see below.",
        f"- **Noise.** {noise_note(rows)}.",
        "- **Networks of others** are rebuilt from their papers or come from transformers and timm. Their ONNX files",
        "  are made for one size; ours take images of any size.",
        "- The network alone is timed. Segmentation ends with logits at the network's own stride.",
        "- glibc's allocator is set to keep freed memory, for both networks; otherwise ratios at large sizes would",
        "  mostly measure the allocator.",
        "- With one thread, torch computes 1x1 convolutions by a slower function than with two: *eager* at one thread",
        "  is slow for both.",
        f"- The largest load of the machine before a row was {busy:g} processes.",
    ]
    if failed:
        names = sorted({f"{row['key']['ours']} and {row['key']['peer']} ({row['failed']})" for row in failed})
        lines.append(f"- Not measured: {'; '.join(names)}.")
    return "\n".join(lines)


def _groups(rows: Sequence[Row]) -> Iterable[str]:
    for group in dict.fromkeys(row["key"]["group"] for row in rows):
        own = [row for row in rows if row["key"]["group"] == group and "ratios" in row]
        text = f"## {group.capitalize()}\n\n" + markdown([HEADER, *map(cells_of, own)])
        remarks = {row["remark"]: row["paper"] for row in own if row.get("remark")}
        if remarks:
            text += "\n\nFigures of the paper: " + "; ".join(remarks) + "."
        yield text


def _plots(rows: Sequence[Row], page: Path) -> Iterable[str]:
    plots = plots_of(rows)
    if not plots:
        return
    figure = page.with_suffix(".quality.png")
    draw_quality(rows, figure)
    picture = f"![Quality against latency]({figure.name})"
    quoted = "Quality is quoted, of the images that the source used (Cityscapes: 1024x2048); time is measured here."
    yield f"## Quality against latency\n\n{picture}\n\n{quoted}"
    for plot in plots:
        points = [
            (p.name, f"{p.ms:.4g}", f"{p.quality:g}", p.source, f"`{p.command}`")
            for p in sorted(plot.points, key=lambda point: -point.quality)
        ]
        yield f"### {plot.title}\n\n" + markdown([("model", "ms", plot.points[0].metric, "source", "command"), *points])


def _costs(rows: Sequence[Row]) -> str:
    """Published and counted costs of the networks of others."""
    table = [("network", "module", "M weights", "published", "GMACs", "published", "of an image of")]
    for name, peer in PEERS.items():
        row = next((r for r in rows if r["key"]["peer"] == name and "peer" in r.get("costs", {})), None)
        if row is None:
            continue
        params, macs = row["costs"]["peer"]
        here = f"{macs / row['key']['batch'] / 1e9:.4g} at {row['key']['peer_size']}"
        size = f"{peer.macs_size[0]}x{peer.macs_size[1]}"
        table.append((name, f"`{peer.ref}`", f"{params / 1e6:.2f}", f"{peer.params:g}", here, f"{peer.gmacs:g}", size))
    return "## The networks of others\n\n" + markdown(table)


def _laws(rows: Sequence[Row], figure: Path) -> str:
    above = steep(rows)
    verdict = (
        "Of our networks in their fastest runtime, these grow by an exponent above "
        f"{STEEP}: {', '.join(above) or 'none'}."
    )
    return (
        f"## Cost against the size of the image\n\n{LAW_NOTE}. {verdict}\n\n![Cost laws]({figure.name})\n\n"
        + markdown(law_table(rows))
        + "\n\n```bash\nfoveal bench --preset cost-laws --resume rows.jsonl\n```"
    )


def _budgets(rows: Sequence[Row]) -> str:
    """All models of a task by time, for each setting."""
    text = "## Which model within a time\n\n"
    text += "`foveal bench --task segment --size 1024x2048 --budget 100ms` ranks the models on another machine."
    settings = dict.fromkeys((r["key"]["task"], r["key"]["threads"], r["key"]["dtype"]) for r in rows)
    for task, threads, dtype in settings:
        own = [r for r in rows if (r["key"]["task"], r["key"]["threads"], r["key"]["dtype"]) == (task, threads, dtype)]
        own.sort(key=lambda row: (row["key"]["size"], row["ms"] if row["ms"] is not None else float("inf")))
        header, *cells = budget.budget_table(own, float("inf"))
        kept = [i for i, name in enumerate(header) if name != "within"]
        table = [[line[i] for i in kept] for line in (header, *cells)]
        text += f"\n\n### {task}, {threads} thread{'s' if threads > 1 else ''}, {dtype}\n\n" + markdown(table)
    return text
