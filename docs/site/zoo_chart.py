"""The figure of the model zoo: published accuracy against multiply-accumulates, as SVG for light and dark pages."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 20, 80
COLOURS = {
    "efficientvit": ("#d6336c", "EfficientViT (MIT)"),
    "efficientvit_m": ("#1c7ed6", "EfficientViT-M"),
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
    axes = Axes.around(found)
    parts = [_STYLE, *axes.draw()]
    for name, family, macs, top1 in found:
        x, y = axes.place(macs, top1)
        label = f"<title>{escape(name)}: {top1:g} %, {macs:.3g} G</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{COLOURS[family][0]}">{label}</circle>')
    for number, (colour, title) in enumerate(COLOURS.values()):
        x = LEFT + 160 * number
        parts.append(f'<circle cx="{x + 6}" cy="{HEIGHT - 14}" r="6" fill="{colour}"/>')
        parts.append(_text(x + 18, HEIGHT - 9, title))
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    return "\n".join([start, *parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class Axes:
    """Multiply-accumulates to the right, on a logarithmic scale, and accuracy upwards.

    Attributes:
        least, most: multiply-accumulates at both ends, in G.
        low, high: accuracies at both ends, in percent.
    """

    least: float
    most: float
    low: int
    high: int

    @classmethod
    def around(cls, found: list[tuple[str, str, float, float]]) -> Axes:
        macs, top1 = [point[2] for point in found], [point[3] for point in found]
        return cls(min(macs), max(macs), math.floor(min(top1)), math.ceil(max(top1)))

    def place(self, macs: float, top1: float) -> tuple[float, float]:
        across = math.log(macs / self.least) / math.log(self.most / self.least)
        up = (top1 - self.low) / (self.high - self.low)
        return LEFT + 12 + across * (WIDTH - LEFT - RIGHT - 24), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def draw(self) -> list[str]:
        parts = []
        for top1 in range(self.low + (-self.low) % 5, self.high + 1, 5):
            _, y = self.place(self.least, top1)
            parts += [f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>', _text(LEFT - 8, y + 4, f"{top1}", "end")]
        for macs in (0.1, 0.3, 1, 3, 10, 30, 100):
            if self.least <= macs <= self.most:
                x, _ = self.place(macs, self.low)
                parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
                parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{macs:g}", "middle"))
        parts.append(_text(WIDTH - RIGHT, HEIGHT - BOTTOM + 36, "multiply-accumulates of one image, G", "end"))
        return [*parts, _text(LEFT + 6, TOP + 4, "top-1 accuracy, %")]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


# A grey that can be read on white and on black, because a picture on a page cannot know which of the two it is on.
_STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#868e96}path{stroke:#868e96;stroke-opacity:.35;fill:none}</style>"
)
