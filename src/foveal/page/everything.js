// All objects of an image: prompts on a grid, coarse first, then finer where no mask was found. The method, its stages
// and its thresholds are those of the fast mode in Python (foveal/prediction/everything.py).

import { above, atImageSize, extent, insideFrame, toFrame } from "./masks.js";

const STRIDES = [4, 2, 1], BATCH = 8, LOW_RES = 256;
const FAST = 0.03, COVERING = [0.08, 0.05]; // how much lower the thresholds are: of masks, and of what covers points
const SAME = 0.7; // overlap of boxes above which two masks are one object

export async function findEverything({ decode, image, side, width, height, thresholds, progress }) {
  const scale = toFrame(image);
  const [leastIou, leastStability] = thresholds.map((value) => value - FAST);
  const covering = thresholds.map((value, i) => value - COVERING[i]);
  const inside = insideFrame(image.width, image.height), covered = new Uint8Array(LOW_RES * LOW_RES);
  const found = [], waiting = new Set(Array.from({ length: side * side }, (_, i) => i));
  let prompts = 0;
  for (const stride of STRIDES) {
    const first = Math.floor(stride / 2), due = [];
    for (let row = first; row < side; row += stride)
      for (let column = first; column < side; column += stride)
        if (waiting.delete(row * side + column))
          due.push([((column + 0.5) / side) * image.width, ((row + 0.5) / side) * image.height]);
    const points = due.filter(([x, y]) => {
      const [column, row] = [x, y].map((value, i) => Math.floor((value * scale[i]) / 4));
      return !covered[row * LOW_RES + column];
    });
    for (let start = 0; start < points.length; start += BATCH) {
      const batch = points.slice(start, start + BATCH);
      const coords = batch.flatMap(([x, y]) => [x * scale[0], y * scale[1], 0, 0]);
      const { logits, iou } = await decode(coords, batch.flatMap(() => [1, -1]), batch.length);
      prompts += batch.length;
      batch.forEach((point, p) => {
        cover(covered, logits, iou, p, inside, covering);
        for (let m = 1; m < 4; m++)
          if (iou[4 * p + m] > leastIou)
            keep(found, logits, 4 * p + m, iou[4 * p + m], point, { image, width, height, leastStability });
      });
      const done = side * side - waiting.size - (points.length - start - batch.length);
      progress(done / (side * side), "Looking for objects");
    }
  }
  found.sort((a, b) => b.iou - a.iou);
  const masks = [];
  for (const each of found) if (!masks.some((other) => overlap(each.bbox, other.bbox) > SAME)) masks.push(each);
  return { masks, prompts, width, height };
}

// Mark the smallest good mask of a prompt as covered: a larger one may hold objects not yet found.
function cover(covered, logits, iou, p, [columns, rows], [leastIou, leastStability]) {
  let smallest, least = Infinity;
  for (let m = 1; m < 4; m++) {
    const offset = (4 * p + m) * LOW_RES * LOW_RES;
    const { area, stability } = measure(logits, offset, columns, rows, LOW_RES);
    if (iou[4 * p + m] > leastIou && stability >= leastStability && area && area < least)
      [smallest, least] = [offset, area];
  }
  if (smallest === undefined) return;
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < columns; x++) if (logits[smallest + y * LOW_RES + x] > 0) covered[y * LOW_RES + x] = 1;
}

// Area above 0, and the stability score: the area above 1 as a share of the area above -1.
function measure(logits, offset, columns, rows, stride) {
  let area = 0, inner = 0, outer = 0;
  for (let y = 0; y < rows; y++)
    for (let x = 0, at = offset + y * stride; x < columns; x++, at++) {
      const value = logits[at];
      if (value > -1) {
        outer++;
        if (value > 0) area++;
        if (value > 1) inner++;
      }
    }
  return { area, stability: inner / Math.max(outer, 1) };
}

function keep(found, logits, index, iou, point, { image, width, height, leastStability }) {
  const values = atImageSize(logits, index * LOW_RES * LOW_RES, width, height);
  const { area, stability } = measure(values, 0, width, height, width);
  if (!area || stability < leastStability) return;
  const mask = above(values);
  const place = [(point[0] * width) / image.width, (point[1] * height) / image.height]; // in the mask, as its box
  found.push({ mask, width, height, iou, stability, point: place, ...extent({ mask, width, height }) });
}

// Intersection over union of two boxes.
function overlap([x1, y1, w1, h1], [x2, y2, w2, h2]) {
  const across = Math.min(x1 + w1, x2 + w2) - Math.max(x1, x2), down = Math.min(y1 + h1, y2 + h2) - Math.max(y1, y2);
  const shared = Math.max(0, across) * Math.max(0, down);
  return shared / (w1 * h1 + w2 * h2 - shared);
}
