"""The figure of the model zoo: published accuracy against counted multiply-accumulates, as SVG for light and dark pages."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 20, 80
COLOURS = {
    "efficientvit": ("#d6336c", "EfficientViT (MIT)"),
    "efficientvit_m": ("#1c7ed6", "EfficientViT (Microsoft)"),
    "mobilenet": ("#f08c00", "MobileNet"),
    "efficientnet": ("#2f9e44", "EfficientNet"),
    "mambavision": ("#7048e8", "MambaVision"),
}
_TOP1 = re.compile(r"in1k top-1 ([\d.]+) at (\d+)")


def points(rows: list[dict[str, Any]]) -> list[tuple[str, str, float, float]]:
    """Name, family, multiply-accumulates in G at the size of the figure, and published top-1 of each classifier.

    Multiply-accumulates are those at 224x224 times the ratio of the numbers of pixels: the costs of these families are
    linear in the number of pixels, but for their last layers and for padding.
    """
    found = []
    for row in rows:
        match = _TOP1.search("; ".join(row["figures"])) if "params" in row and row["family"] in COLOURS else None
        if match:
            macs = row["MACs"] / 1e9 * (int(match[2]) / 224) ** 2
            found.append((row["name"], row["family"], macs, float(match[1])))
    return found


def chart(rows: list[dict[str, Any]]) -> str:
    """The figure as an SVG file."""
    found = points(rows)
    low, high = math.floor(min(p[3] for p in found)), math.ceil(max(p[3] for p in found))
    first, last = (math.log10(edge(p[2] for p in found)) for edge in (min, max))

    def place(macs: float, top1: float) -> tuple[float, float]:
        across = (math.log10(macs) - first) / (last - first)
        up = (top1 - low) / (high - low)
        return LEFT + 12 + across * (WIDTH - LEFT - RIGHT - 24), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [_STYLE, *_axes(place, low, high, 10**first, 10**last)]
    for name, family, macs, top1 in found:
        x, y = place(macs, top1)
        label = f"{name}: {top1:g} %, {macs:.3g} G"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{COLOURS[family][0]}"><title>{escape(label)}</title></circle>')
    for place_in_legend, (colour, title) in enumerate(COLOURS.values()):
        x = LEFT + 160 * place_in_legend
        parts.append(f'<circle cx="{x + 6}" cy="{HEIGHT - 14}" r="6" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{HEIGHT - 9}">{escape(title)}</text>')
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n' + "\n".join(parts) + "\n</svg>\n"


def _axes(place: Any, low: int, high: int, least: float, most: float) -> list[str]:
    parts = []
    for top1 in range(low + (-low) % 5, high + 1, 5):
        _, y = place(least, top1)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/><text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{top1}</text>')
    for macs in (0.1, 0.3, 1, 3, 10, 30, 100):
        if least <= macs <= most:
            x, _ = place(macs, low)
            parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{macs:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM + 36}" text-anchor="end">multiply-accumulates of one image, G</text>')
    parts.append(f'<text x="{LEFT + 6}" y="{TOP + 4}">top-1 accuracy, %</text>')
    return parts


# A grey that can be read on white and on black, because a picture on a page cannot know which of the two it is on.
_STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#868e96}path{stroke:#868e96;stroke-opacity:.35;fill:none}</style>"
)
