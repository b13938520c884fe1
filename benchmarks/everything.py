"""Compare the full grid of 32 x 32 points with the fast mode of automatic masks: prompts, time, average recall.

Average recall is COCO's, computed with COCO's tools: of the 100 masks with the highest predicted IoU in each image, of
all classes together, at IoU 0.50 to 0.95. The fast mode has thresholds of its own: "fast, same thresholds" is the fast
mode with the thresholds of the full grid, "full grid, 0.85" is the full grid with the thresholds of the fast mode. Each
measurement is one line of the JSON file. It is not repeated, so that an interrupted run can go on.

OMP_NUM_THREADS=1 python benchmarks/everything.py DATA [--split val] [--count 10] [--modes "full grid" fast]
    [--model tinyvit_5m.mobilesam] [--json everything.jsonl]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import foveal
from foveal.data.instances import InstanceData
from foveal.measuring import machine

GMACS = 0.95  # of the decoder for one of four prompts; tests/tasks/test_mask_decoder.py counts them
MODES: dict[str, dict[str, Any]] = {
    "full grid": {},
    "fast": {"fast": True},
    "fast, same thresholds": {"fast": True, "pred_iou_thresh": 0.88, "stability_score_thresh": 0.95},
    "full grid, 0.85": {"pred_iou_thresh": 0.85, "stability_score_thresh": 0.92},
}


def main() -> None:
    """Measure images and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="data set of objects, as for foveal evaluate")
    parser.add_argument("--split", default="val")
    parser.add_argument("--model", default="tinyvit_5m.mobilesam")
    parser.add_argument("--count", type=int, default=10, help="number of images, spread evenly")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["full grid", "fast"])
    parser.add_argument("--json", type=Path, default=Path("everything.jsonl"))
    arguments = parser.parse_args()
    data = InstanceData.open(arguments.data, [arguments.split])
    chosen = sorted({int(i) for i in np.linspace(0, len(data) - 1, min(arguments.count, len(data)))})
    predictor = foveal.load(arguments.model)
    known = [json.loads(line) for line in arguments.json.read_text().splitlines()] if arguments.json.exists() else []
    rows = {(row["image"], row["mode"]): row for row in known}
    for index in chosen:
        image, _ = data[index]
        for mode in arguments.modes:
            if (key := (data.name(index).name, mode)) in rows:
                continue
            started = time.perf_counter()
            result = predictor.everything(image, output_mode="coco_rle", **MODES[mode])
            seconds = round(time.perf_counter() - started, 2)
            records = [{name: record[name] for name in ("segmentation", "predicted_iou")} for record in result]
            row = {"image": key[0], "mode": mode, "prompts": result.prompts, "seconds": seconds, "records": records}
            rows[key] = row
            with arguments.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{key[0]}, {mode}: {result.prompts} prompts, {len(result)} masks, {seconds} s", flush=True)
    objects = {data.name(index).name: data[index][1] for index in chosen}
    count = sum(map(len, objects.values()))
    print(f"\n{predictor.info.model}, {predictor.runtime}, {machine.one_line()}")
    print(f"{len(objects)} images, {count} objects; means per image\n")
    print("| | prompts | decoder GMACs | seconds | masks | AR@100 |\n|---|---|---|---|---|---|")
    for mode in arguments.modes:
        measured = [rows[name, mode] for name in objects]
        prompts, seconds = (np.mean([row[key] for row in measured]) for key in ("prompts", "seconds"))
        masks = np.mean([len(row["records"]) for row in measured])
        recall = foveal.average_recall(((objects[row["image"]], row["records"]) for row in measured), 100)["AR"]
        print(f"| {mode} | {prompts:.1f} | {GMACS * prompts:.0f} | {seconds:.1f} | {masks:.1f} | {recall:.4f} |")


if __name__ == "__main__":
    main()
