"""The Markdown page of a file of rows: what was compared on one machine, beginning with where others are ahead."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..files import atomic_write, ensure_folder
from . import budget
from .presets.figures import draw_quality, of_one_machine, plots_of
from .presets.headline import HEADER, cells_of, noise_note
from .presets.headline import KIND as PAIR
from .presets.laws import KIND as LAW
from .presets.laws import LAW_NOTE, STEEP, draw_laws, law_table, steep
from .presets.pairs import PAIRS, PEERS
from .row_file import Row, read_rows

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
    names = {str(number): where.machine for number, where in enumerate(measured, 1)}
    labelled = [
        {**row, "machine": label if len(measured) > 1 else ""}
        for label, where in zip(names, measured, strict=True)
        for row in where.rows
    ]
    pairs, laws, budgets = ([row for row in labelled if row["kind"] == kind] for kind in (PAIR, LAW, budget.KIND))
    ensure_folder(page.parent)
    parts = [_head(rows, page)]
    if pairs:
        parts += [_behind(pairs), _summary(pairs), _method(names, pairs), *_groups(pairs)]
        parts += [*_plots(pairs, page), _costs(pairs)]
    else:
        parts.append(_machines_text(names))
    if laws:
        figure = page.with_suffix(".laws.png")
        draw_laws(laws := of_one_machine(laws), figure)
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
    source, target = (path.name if path.is_absolute() else path.as_posix() for path in (rows, page))
    ranking = f"--task segment --size 1024x2048 --budget 100ms --page {target}"
    commands = ("--preset headline", "--preset cost-laws", ranking)
    return (
        "# Compared with other networks\n\n"
        "This page is for those who choose between networks. It is generated from measurements; do not edit it. In a\n"
        "checkout of the repository, `make comparison` repeats them on your machine, and goes on where it was ended;\n"
        "the results may differ. Rows of other machines stay in the file and on the page. Its commands are:\n\n"
        "```bash\npip install '.[torch,timm,openvino]' transformers\n"
        + "\n".join(f"foveal bench {command} --resume {source}" for command in commands)
        + "\n```"
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
        text += "\n\n" + _table(behind, reasons=True)
    if by_engine:
        text += (
            f"\n\nIn {len(by_engine)} more, our network is faster only because of its runtime: in the fastest runtime "
            "of the other network, the other network is faster.\n\n"
        )
        text += _table(by_engine)
    return text


def _summary(rows: Sequence[Row]) -> str:
    """One line for each group and setting: how many rows, and the median of their ratios."""
    measured = [row for row in rows if "fastest" in row.get("ratios", {})]
    if not measured:
        return "## Summary\n\nNothing was measured."
    table: list[tuple[str, ...]] = [
        ("group", "batch", "threads", "dtype", "machine", "rows", "ours faster", "algorithm", "together")
    ]
    for setting in dict.fromkeys(map(_group_setting, measured)):
        own = [row for row in measured if _group_setting(row) == setting]
        same = [row["ratios"]["same"]["ratio"] for row in own if "same" in row["ratios"]]
        fastest = [_gain(row, "fastest") for row in own]
        medians = (f"{statistics.median(ratios):.2f}" if ratios else "" for ratios in (same, fastest))
        table.append((*map(str, setting), str(len(own)), str(sum(gain > 1 for gain in fastest)), *medians))
    text = (
        "## Summary\n\n*rows*: how many; *ours faster*: in how many our network is faster, each in its fastest "
        "runtime. The two last columns are medians of ratios, which the next section explains."
    )
    return f"{text}\n\n{markdown(table)}"


def _group_setting(row: Row) -> tuple[str, int, int, str, str]:
    key = row["key"]
    return key["group"], key["batch"], key["threads"], key["dtype"], row.get("machine", "")


def _table(rows: Sequence[Row], reasons: bool = False) -> str:
    """Rows of pairs, with their machine where the file has several."""
    with_machine = any(row.get("machine") for row in rows)
    header = (*HEADER, *(["machine"] if with_machine else []), *(["reason"] if reasons else []))
    lines = [
        (*cells_of(row), *([row["machine"]] if with_machine else []), *([_reason(row)] if reasons else []))
        for row in rows
    ]
    return markdown([header, *lines])


def _gain(row: Row, name: str) -> float:
    return row["ratios"].get(name, {"ratio": float("inf")})["ratio"]


def _reason(row: Row) -> str:
    key = row["key"]
    found = (pair.reason for pair in PAIRS if (pair.ours, pair.peer) == (key["ours"], key["peer"]))
    return next(found, "") or "not examined"


def _machines_text(machines: Mapping[str, Row]) -> str:
    """The machines of the rows, by the number that the tables use where there are several."""
    several = len(machines) > 1
    return "\n".join(
        f"{f'- Machine {label}' if several else 'Machine'}: {facts['cpu']}, {facts['cores']} cores, {facts['os']}; "
        + ", ".join(f"{name} {facts[name]}" for name in _PACKAGES if name in facts)
        + "."
        for label, facts in machines.items()
    )


def _method(machines: Mapping[str, Row], rows: Sequence[Row]) -> str:
    rounds = sorted(row["rounds"] for row in rows if "rounds" in row)
    busy = max((row.get("load") or 0 for row in rows), default=0)
    failed = [row for row in rows if "failed" in row]
    lines = [
        "## How it is measured",
        "",
        _machines_text(machines),
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
        "- **Third-party networks** are rebuilt from their papers or come from transformers and timm. Their ONNX files",
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
        text = f"## {group.capitalize()}"
        for threads, dtype in dict.fromkeys((row["key"]["threads"], row["key"]["dtype"]) for row in own):
            setting = [row for row in own if (row["key"]["threads"], row["key"]["dtype"]) == (threads, dtype)]
            text += f"\n\n### {group.capitalize()}: {_setting_text(threads, dtype)}\n\n" + _table(setting)
        remarks = dict.fromkeys(row["remark"] for row in own if row.get("remark"))
        if remarks:
            text += "\n\nClaims of the papers: " + "; ".join(remarks) + "."
        yield text


def _setting_text(threads: int, dtype: str) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}, {dtype}"


def _plots(rows: Sequence[Row], page: Path) -> Iterable[str]:
    plots = plots_of(rows)
    if not plots:
        return
    figure = page.with_suffix(".quality.png")
    draw_quality(rows, figure)
    picture = f"![Quality against latency]({figure.name})"
    quoted = (
        "The quality is quoted from the source, at the image size used there (Cityscapes: 1024x2048); the time was "
        "measured by us."
    )
    yield f"## Quality against latency\n\n{picture}\n\n{quoted}"
    for plot in plots:
        points = [
            (p.name, f"{p.ms:.4g}", f"{p.quality:g}", p.source, f"`{p.command}`")
            for p in sorted(plot.points, key=lambda point: -point.quality)
        ]
        yield f"### {plot.title}\n\n" + markdown([("model", "ms", plot.points[0].metric, "source", "command"), *points])


def _costs(rows: Sequence[Row]) -> str:
    """Published and counted costs of the third-party networks."""
    table = [("network", "module", "M weights", "published", "GMACs", "published", "of an image of")]
    for name, peer in PEERS.items():
        row = next((r for r in rows if r["key"]["peer"] == name and "peer" in r.get("costs", {})), None)
        if row is None:
            continue
        params, macs = row["costs"]["peer"]
        here = f"{macs / row['key']['batch'] / 1e9:.4g} at {row['key']['peer_size']}"
        size = f"{peer.macs_size[0]}x{peer.macs_size[1]}"
        table.append((name, f"`{peer.ref}`", f"{params / 1e6:.2f}", f"{peer.params:g}", here, f"{peer.gmacs:g}", size))
    return "## Third-party networks\n\n" + markdown(table)


def _laws(rows: Sequence[Row], figure: Path) -> str:
    above = steep(rows)
    verdict = (
        "The time of these networks of ours, in their fastest runtime, grows with an exponent above "
        f"{STEEP}: {', '.join(above) or 'none'}."
    )
    return (
        f"## Cost against the size of the image\n\n{LAW_NOTE}. {verdict}\n\n![Cost laws]({figure.name})\n\n"
        + markdown(law_table(rows))
    )


def _budgets(rows: Sequence[Row]) -> str:
    """All models of a task by time, for each setting."""
    text = "## Which model within a time\n\n"
    text += "`foveal bench --task segment --size 1024x2048 --budget 100ms` ranks the models on your own machine."
    settings = dict.fromkeys(map(_setting, rows))
    for setting in settings:
        own = [row for row in rows if _setting(row) == setting]
        task, threads, dtype, label = setting
        own.sort(key=lambda row: (row["key"]["size"], row["ms"] if row["ms"] is not None else float("inf")))
        header, *cells = budget.budget_table(own, float("inf"))
        kept = [i for i, name in enumerate(header) if name != "within"]
        table = [[line[i] for i in kept] for line in (header, *cells)]
        where = f", machine {label}" if label else ""
        text += f"\n\n### {task}, {_setting_text(threads, dtype)}{where}\n\n" + markdown(table)
    return text


def _setting(row: Row) -> tuple[str, int, str, str]:
    key = row["key"]
    return key["task"], key["threads"], key["dtype"], row["machine"]
