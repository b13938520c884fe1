// Masks: Uint8Array of 0 and 1, row by row, with its width and height. Here they are made from logits and run lengths.

import { longSide } from "./resample.js";

const FRAME = 1024; // side of the square frame of Segment Anything, in pixels
const LOW_RES = 256; // side of the logits that the network computes

// Linear interpolation between pixel centres: for each output position two neighbours and the weight of the second.
function linear(length, target) {
  const low = new Int32Array(target), high = new Int32Array(target), share = new Float32Array(target);
  for (let i = 0; i < target; i++) {
    const place = Math.min(Math.max((i + 0.5) * (length / target) - 0.5, 0), length - 1);
    low[i] = Math.min(Math.floor(place), Math.max(0, length - 2));
    high[i] = Math.min(low[i] + 1, length - 1);
    share[i] = place - low[i];
  }
  return { low, high, share };
}

// Resize `rows` x `columns` numbers along both axes; the result is written to `out`.
function stretch(values, offset, stride, across, down, out) {
  const width = across.low.length, height = down.low.length;
  const cache = new Map();
  const row = (index) => {
    let line = cache.get(index);
    if (line) return line;
    line = new Float32Array(width);
    const base = offset + index * stride;
    for (let x = 0; x < width; x++) {
      const left = values[base + across.low[x]];
      line[x] = left + across.share[x] * (values[base + across.high[x]] - left);
    }
    if (cache.size > 3) cache.delete(cache.keys().next().value);
    cache.set(index, line);
    return line;
  };
  for (let y = 0, at = 0; y < height; y++) {
    const upper = row(down.low[y]), lower = row(down.high[y]), share = down.share[y];
    for (let x = 0; x < width; x++) out[at++] = upper[x] + share * (lower[x] - upper[x]);
  }
}

// Mask logits (256, 256) at the size of the image: resized to the frame, cut, and resized to the image.
export function atImageSize(logits, offset, width, height) {
  const [inWidth, inHeight] = longSide(width, height, FRAME);
  const frame = new Float32Array(inWidth * inHeight);
  stretch(logits, offset, LOW_RES, places(inWidth, inWidth), places(inHeight, inHeight), frame);
  if (inWidth === width && inHeight === height) return frame;
  const out = new Float32Array(width * height);
  stretch(frame, 0, inWidth, linear(inWidth, width), linear(inHeight, height), out);
  return out;
}

// Places in the logits of `target` pixels along `inside` pixels of the frame.
function places(inside, target) {
  const scale = FRAME / LOW_RES, length = inside / scale;
  const low = new Int32Array(target), high = new Int32Array(target), share = new Float32Array(target);
  for (let i = 0; i < target; i++) {
    const place = Math.min(Math.max((i + 0.5) * (length / target) - 0.5, 0), LOW_RES - 1);
    low[i] = Math.min(Math.floor(place), LOW_RES - 2);
    high[i] = low[i] + 1;
    share[i] = place - low[i];
  }
  return { low, high, share };
}

// Rows or columns of the logits that have an influence on `inside` pixels of the frame.
function usedLogits(inside) {
  const scale = FRAME / LOW_RES;
  return Math.min(LOW_RES, Math.max(0, Math.floor((inside - 0.5) / scale - 0.5)) + 2);
}

// The part of a network's logits, of which each is (256, 256), that belongs to an image: what LogitMask takes.
export function cutLogits(logits, numbers, width, height) {
  const [columns, rows] = longSide(width, height, FRAME).map(usedLogits);
  const values = new Float32Array(numbers.length * rows * columns);
  let at = 0;
  for (const number of numbers)
    for (let y = 0; y < rows; y++, at += columns) {
      const from = (number * LOW_RES + y) * LOW_RES;
      values.set(logits.subarray(from, from + columns), at);
    }
  return { values, rows, columns };
}

// A mask that is only shown: it has the network's own few logits, (rows, columns) of them from `number` on, and is drawn
// from these at any size.
export class LogitMask {
  constructor({ values, rows, columns }, number, iou, image) {
    Object.assign(this, { columns, iou, image });
    this.logits = values.subarray(number * rows * columns, (number + 1) * rows * columns);
    this.rank = 0; // its area in logits, by which masks are ordered
    for (const value of this.logits) if (value > 0) this.rank++;
  }

  // The mask at a size, and its area there. It is kept until another size is asked for.
  at(width, height) {
    if (this.drawn?.width === width && this.drawn.height === height) return this.drawn;
    const { logits, columns, image } = this, [inWidth, inHeight] = longSide(image.width, image.height, FRAME);
    const across = places(inWidth, width), down = places(inHeight, height), { low, high, share } = across;
    const mask = this.drawn?.mask.length === width * height ? this.drawn.mask : new Uint8Array(width * height);
    const line = new Float32Array(columns);
    let area = 0;
    for (let y = 0, at = 0; y < height; y++) {
      const upper = down.low[y] * columns, lower = down.high[y] * columns, weight = down.share[y];
      for (let x = 0; x < columns; x++) line[x] = logits[upper + x] + weight * (logits[lower + x] - logits[upper + x]);
      for (let x = 0; x < width; x++, at++) {
        const left = line[low[x]], inside = left + share[x] * (line[high[x]] - left) > 0 ? 1 : 0;
        mask[at] = inside;
        area += inside;
      }
    }
    return (this.drawn = { mask, width, height, area });
  }
}

// The mask of the values above a threshold.
export function above(values, threshold = 0) {
  const mask = new Uint8Array(values.length);
  for (let i = 0; i < mask.length; i++) mask[i] = values[i] > threshold ? 1 : 0;
  return mask;
}

// Factors of x and y from pixels of the image to the frame, where prompts have their coordinates.
export function toFrame({ width, height }) {
  const [inWidth, inHeight] = longSide(width, height, FRAME);
  return [inWidth / width, inHeight / height];
}

// A mask at another size: its edges are interpolated.
export function enlarged({ mask, width, height }, toWidth, toHeight) {
  const values = new Float32Array(toWidth * toHeight);
  stretch(mask, 0, width, linear(width, toWidth), linear(height, toHeight), values);
  return { mask: above(values, 0.5), width: toWidth, height: toHeight };
}

// Part of the logits' rows and columns in which the image is.
export function insideFrame(width, height) {
  return longSide(width, height, FRAME).map((side) => Math.ceil(side / (FRAME / LOW_RES)));
}

// The class with the largest logit for each pixel; `logits` is (classes, rows, columns) at the network's stride.
export function classesAt(logits, [count, rows, columns], stride, [fromWidth, fromHeight], width, height) {
  const place = (length, positions, target) => {
    const low = new Int32Array(target), high = new Int32Array(target), share = new Float32Array(target);
    for (let i = 0; i < target; i++) {
      const position = Math.min(Math.max(((i + 0.5) * length) / target / stride - 0.5, 0), positions - 1);
      low[i] = Math.min(Math.floor(position), positions - 1);
      high[i] = Math.min(low[i] + 1, positions - 1);
      share[i] = position - low[i];
    }
    return { low, high, share };
  };
  const across = place(fromWidth, columns, width), down = place(fromHeight, rows, height);
  const classes = new Uint8Array(width * height), best = new Float32Array(width), line = new Float32Array(columns);
  for (let y = 0; y < height; y++) {
    best.fill(-Infinity);
    const share = down.share[y], result = classes.subarray(y * width, (y + 1) * width);
    for (let index = 0; index < count; index++) {
      const upper = (index * rows + down.low[y]) * columns, lower = (index * rows + down.high[y]) * columns;
      for (let x = 0; x < columns; x++) line[x] = logits[upper + x] + share * (logits[lower + x] - logits[upper + x]);
      for (let x = 0; x < width; x++) {
        const left = line[across.low[x]], value = left + across.share[x] * (line[across.high[x]] - left);
        if (value > best[x]) {
          best[x] = value;
          result[x] = index;
        }
      }
    }
  }
  return classes;
}

// Run lengths column by column, alternately outside and inside, outside first, as in COCO.
export function toRuns({ mask, width, height }) {
  const counts = [];
  let inside = 0, length = 0;
  for (let x = 0; x < width; x++)
    for (let y = 0; y < height; y++) {
      const value = mask[y * width + x] ? 1 : 0;
      if (value === inside) length++;
      else {
        counts.push(length);
        inside = value;
        length = 1;
      }
    }
  counts.push(length);
  return { size: [height, width], counts };
}

// The mask of run lengths; with `value`, it is written into an existing array.
export function fromRuns({ size: [height, width], counts }, mask = new Uint8Array(width * height), value = 1) {
  let x = 0, y = 0;
  counts.forEach((length, index) => {
    for (let left = length; left > 0; ) {
      const part = Math.min(left, height - y); // of the run in this column
      if (index % 2) for (let i = 0, at = y * width + x; i < part; i++, at += width) mask[at] = value;
      left -= part;
      y += part;
      if (y === height) [x, y] = [x + 1, 0];
    }
  });
  return { mask, width, height };
}

// Area, and box (x, y, width, height) from the first to the last pixel, as Python reports them.
export function extent({ mask, width, height }) {
  let area = 0, left = width, right = -1, top = height, bottom = -1;
  for (let y = 0; y < height; y++) {
    let first = -1, last = -1;
    for (let x = 0, at = y * width; x < width; x++, at++)
      if (mask[at]) {
        area++;
        if (first < 0) first = x;
        last = x;
      }
    if (first < 0) continue;
    if (bottom < 0) top = y;
    bottom = y;
    left = Math.min(left, first);
    right = Math.max(right, last);
  }
  return { area, bbox: area ? [left, top, right - left, bottom - top] : [0, 0, 0, 0] };
}

// Width and height of at most `side` pixels, with the image's aspect ratio.
export function within(width, height, side) {
  const scale = Math.min(1, side / Math.max(width, height));
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}
