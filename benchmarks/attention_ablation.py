"""The ablation of EfficientViT's attention (arXiv 2205.14756) on CamVid: from random weights, at equal MACs.

python benchmarks/attention_ablation.py CAMVID [--epochs 40] [--seeds 0,1] [--out runs/attention_ablation] [--toy]

CAMVID is a folder, or a zip file, with train, trainannot, test and testannot. Each row is EfficientViT-B0 with or
without the multi-scale aggregation and the global attention; its widths make the MACs of all rows equal to 2 %, as in
the paper, whose figures on Cityscapes are 68.1 (neither), 72.3, 72.2 and 74.5 mIoU (both). Rows that were measured are
kept in rows.jsonl, and an interrupted run is resumed. With --plot FILE.png the table is drawn.
"""

from __future__ import annotations

from camvid import SIZE, Model, figures, finish, parser, sizes, train_rows


def _row(widths: tuple[int, ...], scales: tuple[int, ...], attention: bool) -> Model:
    return "efficientvit_b0", {"embed_dim": widths, "scales": scales, "global_attention": attention}


#: By widths of the stem and the stages: B0's for the paper's module, others so that the MACs are those of B0.
ROWS: dict[str, Model] = {
    "neither": _row((8, 18, 36, 64, 160), (), False),
    "multi-scale aggregation only": _row((8, 18, 36, 64, 144), (5,), False),
    "global attention only": _row((8, 16, 36, 64, 144), (), True),
    "both: two branches": _row((8, 16, 32, 64, 128), (5,), True),
    "both: three branches": _row((8, 16, 30, 64, 112), (3, 5), True),
}


def main() -> None:
    """Train the rows that are missing, print the table and draw it."""
    arguments = parser(__doc__, "runs/attention_ablation").parse_args()
    found, machines = train_rows(ROWS, arguments)
    print(f"| attention | branches | widths | parameters | MACs at {SIZE[0]}x{SIZE[1]} | mIoU, test |")
    print("|---|---|---|---|---|---|")
    for name, model in ROWS.items():
        options = model[1]
        widths = " ".join(map(str, options["embed_dim"]))
        print(f"| {name} | {1 + len(options['scales'])} | {widths} | {sizes(model)} | {figures(found[name])} |")
    finish(found, machines, arguments.plot)


if __name__ == "__main__":
    main()
