"""Write docs/zoo.md and its figure from the registry and the rows that were measured: python docs/site/zoo.py

Parameters and multiply-accumulates are counted by ``foveal models``, published figures and licences are those of the
registry, and times are from benchmarks/results. It takes about a minute. Needs foveal[torch].
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
from pathlib import Path
from typing import Any

from zoo_chart import chart

from foveal.commands.models import models
from foveal.measuring.row_file import Measured, read_rows

DOCS = Path(__file__).parents[1]
RESULTS = DOCS.parent / "benchmarks" / "results"
PAGE, CHART = DOCS / "zoo.md", DOCS / "pictures" / "zoo.svg"

#: The picture of each of our weights, a file of docs/pictures, and what it shows.
PICTURES = {
    "efficientvit_b0.camvid": ("segment", "The classes of a photograph"),
    "efficientvit_b0.camvid_scratch": ("segment", "The classes of the same photograph"),
    "efficientvit_sr.x1": ("repair", "Noise and JPEG artefacts at the left, repaired at the right"),
    "efficientvit_sr.x2": ("upscale", "Bicubic interpolation at the left, the model at the right, x2"),
    "efficientvit_sr.x4": ("upscale", "Bicubic interpolation at the left, the model at the right, x4"),
    "tf_efficientnet_lite0.sam": ("click", "The mask of one click"),
}
#: Families in the order of the page, with their names.
FAMILIES = {
    "efficientvit": "EfficientViT of MIT (B, L, XL)",
    "efficientvit_m": "EfficientViT of Microsoft (M)",
    "efficientvit_sr": "EfficientViT-SR, ours",
    "realtime_sr": "Real-time super-resolution, ours",
    "tinyvit": "TinyViT",
    "mobilenet": "MobileNet",
    "efficientnet": "EfficientNet",
    "mambavision": "MambaVision",
    "vit": "Vision transformers",
    "edifice_efficient_vit": "Edifice: EfficientViT",
    "edifice_mamba_vision": "Edifice: MambaVision",
    "albert": "ALBERT",
    "linformer": "Linformer",
}


def main() -> None:
    rows = listed()
    PAGE.write_text(page(rows), encoding="utf-8")
    CHART.write_text(chart(rows), encoding="utf-8")
    print(f"{len(rows)} models and weights: {PAGE}, {CHART}")


def listed() -> list[dict[str, Any]]:
    """The rows of ``foveal models --json``, with multiply-accumulates for images of 224x224."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        models(size="224x224", json=True)
    return json.loads(output.getvalue())["models"]


def page(rows: list[dict[str, Any]]) -> str:
    """The Markdown of the page."""
    ours = [row for row in rows if row.get("bundled")]
    weights = [row for row in rows if row.get("bundled") is False]
    architectures = [row for row in rows if "params" in row]
    if unknown := {row["family"] for row in architectures} - set(FAMILIES):
        raise SystemExit(f"add to FAMILIES: {', '.join(sorted(unknown))}")
    parts = [_introduction(len(architectures), len(weights) + len(ours)), _own(ours)]
    times = measured()
    for family, title in FAMILIES.items():
        of_family = [row for row in architectures if row["family"] == family]
        published = [row for row in weights if row["family"] == family]
        parts.append(_family(title, of_family, published, times))
    parts.append(_ENDING)
    return "\n".join(parts)


def measured() -> dict[str, str]:
    """Times by model, as text, from the rows of the published measurements."""
    best: dict[str, tuple[float, str]] = {}
    for row in _of_one_machine("headline.jsonl", "pair").rows:
        key = row["key"]
        for name, times in row["candidates"].items():
            side, _, runtime = name.partition(" ")
            if side == "ours" and runtime != "eager" and key["dtype"] == "float32":
                ms = statistics.median(times)
                at = f"at {key['size']}" if key["size"] else "for the image encoder at its own size"
                text = f"{ms:.3g} ms {at} ({runtime}, {key['threads']} threads)"
                best[key["ours"]] = min(best.get(key["ours"], (ms, text)), (ms, text))
    formats = _of_one_machine("formats.jsonl", "time")
    place = _elsewhere(formats)
    for row in formats.rows:
        if row["key"]["dtype"] == "float32":
            height, width = row["key"]["size"]
            model, runtime = row["key"]["model"], row["key"]["format"]
            text = f"{row['ms']:.3g} ms at {height}x{width} ({runtime}, 1 thread{place})"
            best[model] = min(best.get(model, (row["ms"], text)), (row["ms"], text))
    ranked = _of_one_machine("headline.jsonl", "budget")  # the only times of many backbones, at a much larger size
    for row in ranked.rows:
        key, ms = row["key"], row["ms"]
        if ms is not None and key["dtype"] == "float32":
            text = f"{ms:.3g} ms to {key['task']} {key['size']} ({row['used']}, {key['threads']} threads"
            best.setdefault(key["model"], (ms, f"{text}{_elsewhere(ranked)})"))
    return {name: text for name, (_, text) in best.items()}


def _elsewhere(rows: Measured) -> str:
    """The processor of rows that were not measured on that of the pairs; else empty."""
    here = rows.machine["cpu"] == _of_one_machine("headline.jsonl", "pair").machine["cpu"]
    return "" if here else f", on {rows.machine['cpu']}"


def _of_one_machine(name: str, kind: str) -> Measured:
    """The rows of a kind, of the machine that has most of them."""
    by_machine = [
        Measured(where.machine, [row for row in where.rows if row["kind"] == kind])
        for where in read_rows(RESULTS / name)
    ]
    return max(by_machine, key=lambda where: len(where.rows))


def _introduction(architectures: int, weights: int) -> str:
    machine = _of_one_machine("headline.jsonl", "pair").machine
    versions = ", ".join(f"{name} {machine[name]}" for name in ("foveal", "torch", "onnxruntime", "openvino"))
    return f"""# Model zoo

This page is for those who choose a model or weights: {architectures} architectures and {weights} sets of weights, with
their licences, costs and results. It is made by `python docs/site/zoo.py` from the registry and from
`benchmarks/results`; do not edit it.

- **params, MACs**: counted, for the model of its first task and one image of 224x224; promptable and language models
  are counted without their heads.
- **published**: the authors' result with its source. It is not measured by us; it is for the authors' weights and for
  images of the size that is given.
- **measured**: the lowest median time of one image in float32 on {machine["cpu"]}, {machine["cores"]} cores,
  {machine["os"]}; {versions}. Of many networks it is the time to segment a large image. The commands are on the pages
  [compared with other networks](benchmarks.md) and [deployment](deploy.md#what-a-format-costs).
- **licence**: that of the published weights, as their publisher states it. Architectures without published weights have
  none; our code is under Apache-2.0.

![Published top-1 accuracy on ImageNet against multiply-accumulates](pictures/zoo.svg)

*Every classifier with a published accuracy: top-1 on ImageNet against multiply-accumulates at the image size of
that accuracy. Training recipes differ, so the chart compares weights as much as architectures.*
"""


def _own(rows: list[dict[str, Any]]) -> str:
    """The section of the weights in the package, with a picture of each."""
    times = measured()
    lines = ["## Weights in the package", ""]
    lines.append("They need no download and predict without torch.\n")
    for row in rows:
        name = row["name"]
        kind, shown = PICTURES[name]
        time = f" {times[name]}." if name in times else ""
        lines += [
            f"### {name}\n",
            f"{', '.join(row['tasks'])}; licence {row['licence']}; {'; '.join(row['figures'])}.{time}",
            f"[Model card](../src/foveal/assets/{name}.md).\n",
            f"![{shown}](pictures/{kind}.{name}.jpg)\n",
            f"*{shown}.*\n",
        ]
    return "\n".join(lines)


def _family(title: str, rows: list[dict[str, Any]], published: list[dict[str, Any]], times: dict[str, str]) -> str:
    lines = [f"## {title}", ""]
    lines += [f"Paper or source: {_linked_paper(rows[0]['paper'])}.\n"] if rows[0].get("paper") else []
    lines += ["| architecture | tasks | params | MACs | published | measured |", "|---|---|---|---|---|---|"]
    for row in rows:
        macs = (
            f"{row['MACs'] / 1e9:.3g} G"
            if row["MACs at"] == "224x224"
            else f"{row['MACs'] / 1e9:.3g} G at {row['MACs at']}"
        )
        cells = [f"`{row['name']}`", ", ".join(row["tasks"]), f"{row['params'] / 1e6:.2f} M", macs]
        lines.append(_line([*cells, "; ".join(row["figures"]), times.get(row["name"], "")]))
    if published:
        lines += ["", "| weights | task | licence | published | from |", "|---|---|---|---|---|"]
        for row in published:
            source = row.get("repo") or row.get("package", "")
            lines.append(
                _line([f"`{row['name']}`", row["tasks"][0], row["licence"], "; ".join(row["figures"]), f"`{source}`"])
            )
    return "\n".join([*lines, ""])


def _linked_paper(text: str) -> str:
    """The text with a link in place of each number of arXiv."""
    words = text.split(" ")
    for place, word in enumerate(words):
        number = word.strip(",;()")
        if place and words[place - 1].strip("(") == "arXiv" and number.replace(".", "").isdigit():
            words[place] = word.replace(number, f"[{number}](https://arxiv.org/abs/{number})")
    return " ".join(words)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


_ENDING = """## Read next

[Choose a model](choose.md) for a time on your machine · [Weights and their licences](weights.md) ·
[Fine-tune published weights](fine_tune.md)
"""


if __name__ == "__main__":
    main()
