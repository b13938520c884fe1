// The networks of a static site, in a worker: ONNX Runtime computes them in WebAssembly or on the GPU.

import { above, atImageSize, classesAt, cutLogits, toFrame } from "./masks.js";
import { prepare } from "./resample.js";
import { findEverything } from "./everything.js";

const MOST_THREADS = 8;
let ort, site, place = "", provider = "wasm", gpu = true;
const sessions = new Map(); // by file
const warm = new Set(); // names of models whose networks have run
let embedding; // of the image that was encoded last
let queue = Promise.resolve(); // calls are answered one after the other

// Download a file; `progress` gets the number of bytes so far.
async function download(file, progress) {
  const address = new URL(file.path, import.meta.url);
  address.search = file.version ?? ""; // so that no older file of the same name comes from a cache
  const response = await fetch(address);
  if (!response.ok) throw Error(`${file.path} cannot be loaded (${response.status}): reload the page`);
  const bytes = new Uint8Array(file.bytes), reader = response.body.getReader();
  let length = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (length + part.value.length > bytes.length) throw Error(`${file.path} has another size than the site says`);
    bytes.set(part.value, length);
    length += part.value.length;
    progress(length);
  }
  if (length !== bytes.length) throw Error(`${file.path} was cut off: reload the page`);
  return bytes;
}

async function hasGpu() {
  if (!gpu || !site.runtime.webgpu || !navigator.gpu || !WebAssembly.Suspending) return false;
  return Boolean(await navigator.gpu.requestAdapter().catch(() => null));
}

async function start(kind, progress) {
  const runtime = site.runtime[kind];
  const library = await import(new URL(runtime.module, import.meta.url));
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
  library.env.wasm.numThreads = threads;
  library.env.wasm.wasmPaths = new URL("runtime/", import.meta.url).href;
  library.env.wasm.wasmBinary = (await download(runtime.binary, progress)).buffer;
  library.env.logLevel = "error";
  ort = library; // only now: a download that failed is tried again
  provider = kind;
  place = kind === "webgpu" ? "on the GPU" : threads > 1 ? `on ${threads} threads` : "on one thread";
}

// Open the networks of a model that are not open yet, with one progress for all their bytes.
async function open(name, progress) {
  const model = site.models.find((each) => each.name === name);
  const files = Object.values(model.files).filter((file) => !sessions.has(file.path));
  const kind = ort ? provider : (await hasGpu()) ? "webgpu" : "wasm";
  const runtime = ort ? null : site.runtime[kind].binary;
  const total = [runtime, ...files].reduce((sum, file) => sum + (file?.bytes ?? 0), 0);
  let before = 0;
  const report = (bytes) => progress((before + bytes) / total, `Loading ${(total / 1e6).toFixed(1)} MB, once`);
  if (runtime) {
    await start(kind, report);
    before += runtime.bytes;
  }
  for (const file of files) {
    const bytes = await download(file, report);
    before += file.bytes;
    sessions.set(file.path, await ort.InferenceSession.create(bytes, { executionProviders: [provider], logSeverityLevel: 3 }));
  }
  return model;
}

async function run(file, feeds) {
  const tensors = Object.fromEntries(
    Object.entries(feeds).map(([name, [data, dims]]) => [name, new ort.Tensor("float32", data, dims)]),
  );
  return await sessions.get(file.path).run(tensors);
}

async function encode({ name, bitmap }, progress) {
  const model = await open(name, progress);
  progress(null, "Reading the photograph");
  const pixels = read(bitmap), { input, dims } = prepare(pixels, model);
  const output = await run(model.files.encoder, { image: [input, dims] });
  embedding = { data: output.image_embeddings.data, width: pixels.width, height: pixels.height };
  return { place };
}

function read(bitmap) {
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // behind transparent pixels, as in Python
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, width, height);
}

// Logits (P, 4, 256, 256) and predicted IoU (P, 4) of P prompts, each of N points in the frame of 1024 pixels.
async function decode(model, coords, labels, prompts) {
  const points = labels.length / prompts;
  const output = await run(model.files.prompts, {
    image_embeddings: [embedding.data, [1, 256, 64, 64]],
    point_coords: [Float32Array.from(coords), [prompts, points, 2]],
    point_labels: [Float32Array.from(labels), [prompts, points]],
  });
  return { logits: output.low_res_masks.data, iou: output.iou_predictions.data };
}

// Logits of the masks of one prompt, their predicted IoU, and their numbers in both.
async function ask({ name, points, labels, box, multimask }) {
  const model = await open(name, () => {});
  const scale = toFrame(embedding);
  // SAM's order: the points, then the corners of the box, or a point of label -1 where there is no box.
  const coords = [...points.flat(), ...(box ?? [0, 0])].map((value, i) => value * scale[i % 2]);
  const kinds = [...labels, ...(box ? [2, 3] : [-1])];
  return { ...(await decode(model, coords, kinds, 1)), numbers: multimask ? [1, 2, 3] : [0] };
}

async function prompt(options) {
  const { logits, iou, numbers } = await ask(options);
  return { ...cutLogits(logits, numbers, embedding.width, embedding.height), iou: numbers.map((number) => iou[number]) };
}

async function mask({ index, width, height, ...options }) {
  const { logits, iou, numbers } = await ask(options), number = numbers[index];
  const found = { mask: above(atImageSize(logits, number * 256 * 256, width, height)), width, height };
  return { ...found, iou: iou[number] };
}

async function everything({ name, side, width, height }, progress) {
  const model = await open(name, () => {});
  return await findEverything({
    decode: (coords, labels, prompts) => decode(model, coords, labels, prompts),
    image: embedding, side, width, height, thresholds: model.thresholds, progress,
  });
}

async function segment({ name, bitmap, width, height }, progress) {
  const model = await open(name, progress);
  progress(null, "Finding the classes");
  if (bitmap) {
    const image = read(bitmap), { input, dims, ...size } = prepare(image, model);
    const { logits } = await run(model.files.network, { image: [input, dims] });
    segment.last = { logits: logits.data, dims: logits.dims.slice(1), size: [size.width, size.height] };
  }
  const { logits, dims, size } = segment.last;
  return { classes: classesAt(logits, dims, model.stride, size, width, height), width, height, place };
}

async function upscale({ name, bitmap }, progress) {
  const model = await open(name, progress);
  const image = read(bitmap), { width, height } = image, { scale } = model;
  const out = new ImageData(scale * width, scale * height);
  const tiles = [...cuts(height)].flatMap((y) => [...cuts(width)].map((x) => [x, y]));
  for (const [done, [x, y]] of tiles.entries()) {
    progress(done / tiles.length, `Working on ${width} x ${height} pixels`);
    const tile = part(image, x, y), { input, dims } = prepare(tile, model);
    const { upscaled } = await run(model.files.network, { image: [input, dims] });
    paste(out, upscaled, scale, x, y, tile);
  }
  const canvas = new OffscreenCanvas(out.width, out.height);
  canvas.getContext("2d").putImageData(out, 0, 0);
  return { bitmap: canvas.transferToImageBitmap(), place };
}

const TILE = 256, MARGIN = 16; // pixels of a tile, and what it shares with each neighbour

// Beginnings and ends of the tiles along a side: what is kept of each, and what the network sees.
function* cuts(length) {
  for (let start = 0; start < length; start += TILE) {
    const end = Math.min(length, start + TILE);
    yield { start, end, from: Math.max(0, start - MARGIN), to: Math.min(length, end + MARGIN) };
    if (end === length) return;
  }
}

function part({ data, width }, x, y) {
  const columns = x.to - x.from, rows = y.to - y.from, out = new Uint8ClampedArray(4 * columns * rows);
  for (let row = 0; row < rows; row++) {
    const at = 4 * ((y.from + row) * width + x.from);
    out.set(data.subarray(at, at + 4 * columns), 4 * row * columns);
  }
  return { data: out, width: columns, height: rows };
}

function paste(out, { data, dims }, scale, x, y) {
  const plane = dims[2] * dims[3];
  for (let row = scale * y.start; row < scale * y.end; row++)
    for (let column = scale * x.start; column < scale * x.end; column++) {
      const from = (row - scale * y.from) * dims[3] + column - scale * x.from, to = 4 * (row * out.width + column);
      for (let channel = 0; channel < 3; channel++) out.data[to + channel] = 255 * data[channel * plane + from];
      out.data[to + 3] = 255;
    }
}

// Get the networks of a model ready. Their first run takes several times as long as others, so it is done here.
async function load({ name }, progress) {
  const model = await open(name, progress);
  progress(1, "Starting the network");
  const { encoder, prompts } = model.files;
  if (encoder && !warm.has(name)) {
    const dims = [1, 3, ...model.size];
    const { image_embeddings: { data } } = await run(encoder, { image: [new Float32Array(3 * dims[2] * dims[3]), dims] });
    const points = { point_coords: [new Float32Array(4), [1, 2, 2]], point_labels: [Float32Array.of(1, -1), [1, 2]] };
    await run(prompts, { image_embeddings: [data, [1, 256, 64, 64]], ...points });
    warm.add(name);
  }
  return { place };
}

const CALLS = { load, encode, prompt, mask, everything, segment, upscale };

// Call a function; where the GPU fails, again in WebAssembly.
async function answer(call, options, progress) {
  try {
    return await CALLS[call](options, progress);
  } catch (error) {
    if (provider !== "webgpu") throw error;
    for (const session of sessions.values()) session.release().catch(() => {});
    sessions.clear();
    [gpu, ort, provider] = [false, undefined, "wasm"];
    return await CALLS[call](options, progress);
  }
}

self.onmessage = ({ data }) => {
  queue = queue.then(() => handle(data));
};

async function handle({ id, call, options }) {
  const progress = (fraction, text) => self.postMessage({ id, progress: { fraction, text } });
  try {
    if (call === "site") {
      site = options;
      return;
    }
    const result = await answer(call, options, progress);
    options.bitmap?.close();
    const parts = [...(result.masks ?? []), result].flatMap((each) => [each.mask?.buffer, each.values?.buffer, each.classes?.buffer, each.bitmap]);
    self.postMessage({ id, result }, parts.filter(Boolean));
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error).split("\n")[0].slice(0, 300) });
  }
}
