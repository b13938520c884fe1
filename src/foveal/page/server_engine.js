// The engine of `foveal serve` and of `foveal demo --page`: the networks run on the server of this page.

import { LogitMask, extent, fromRuns, within } from "./masks.js";
import { pngOf } from "./image.js";

const READ = ["image/jpeg", "image/png", "image/webp", "image/tiff", "image/bmp"]; // what the server reads

// What the bytes of the format "logits" stand for, from -128 on.
const LOGITS = Float32Array.from({ length: 256 }, (_, i) => Math.sign(i - 128) * 8 * ((i - 128) / 127) ** 2);

export class ServerEngine {
  keepsImages = false;
  largestPart = 1024 * 1024;
  place = `on the server ${location.host}`;
  #key = "";
  #embeddings = new WeakMap(); // name of the embedding that the server keeps, by image
  #segmented = null;
  #classes = null;

  static async open() {
    const engine = new ServerEngine();
    ({ models: engine.models } = await (await engine.#call("api/models")).json());
    return engine;
  }

  async #call(path, options = {}, again = true) {
    const headers = { ...options.headers, ...(this.#key && { Authorization: `Bearer ${this.#key}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch {
      throw Error(`The server ${location.host} does not answer: is it running?`);
    }
    if (response.ok) return response;
    const text = (await response.json().catch(() => ({}))).error ?? `The server answered ${response.status}.`;
    if (response.status === 401 && (this.#key = prompt(`${text}\nKey of this server:`) ?? ""))
      return await this.#call(path, options);
    if (response.status === 503 && again) {
      const seconds = Math.min(Number(response.headers.get("Retry-After")) || 1, 10);
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      return await this.#call(path, options, false);
    }
    throw Object.assign(Error(text), { status: response.status });
  }

  async #send(model, call, image, query = {}) {
    const body = READ.includes(image.file?.type) ? image.file : await pngOf(image.bitmap);
    const path = `api/${encodeURIComponent(model.name)}/${call}?${new URLSearchParams(query)}`;
    return await this.#call(path, { method: "POST", body, headers: { "Content-Type": body.type } });
  }

  async load() {}

  async encode(model, image, progress) {
    progress(null, "Encoding the photograph on the server");
    const { embedding, width, height } = await (await this.#send(model, "encode", image)).json();
    if (width !== image.width || height !== image.height)
      throw Error(`The server sees ${width} x ${height} pixels, this browser ${image.width} x ${image.height}.`);
    this.#embeddings.set(image, embedding);
  }

  async #ask(model, image, request) {
    const options = { embedding: this.#embeddings.get(image), ...request };
    if (!options.box) delete options.box;
    if (!options.points.length) for (const key of ["points", "labels"]) delete options[key];
    const send = () =>
      this.#call(`api/${encodeURIComponent(model.name)}/prompt`, {
        method: "POST", body: JSON.stringify(options), headers: { "Content-Type": "application/json" },
      });
    try {
      return await send();
    } catch (error) {
      if (error.status !== 404) throw error;
      await this.encode(model, image, () => {}); // the server has forgotten the embedding
      options.embedding = this.#embeddings.get(image);
      return await send();
    }
  }

  async prompt(model, image, request) {
    const response = await this.#ask(model, image, { ...request, format: "logits" });
    const [count, rows, columns] = numbers(response, "X-Foveal-Shape"), iou = numbers(response, "X-Foveal-IoU");
    const roots = new Int8Array(await response.arrayBuffer()), values = new Float32Array(roots.length);
    for (let i = 0; i < roots.length; i++) values[i] = LOGITS[roots[i] + 128];
    if (values.length !== count * rows * columns) throw Error(`The answer of ${location.host} was cut off: try again.`);
    return iou.map((value, i) => new LogitMask({ values, rows, columns }, i, value, image));
  }

  async mask(model, image, request) {
    const { masks: [{ iou, rle }] } = await (await this.#ask(model, image, request)).json();
    return { iou, ...fromRuns(rle) };
  }

  async everything(model, image, side, progress) {
    progress(null, "Looking for objects on the server");
    const response = await this.#send(model, "everything", image, { fast: true, points_per_side: 16, max_side: side });
    const { masks } = await response.json();
    return { masks: masks.map((each) => ({ ...each, ...fromRuns(each.rle) })).map((each) => ({ ...each, ...extent(each) })) };
  }

  async segment(model, image, side, progress) {
    if (this.#segmented !== image) {
      progress(null, "Finding the classes on the server");
      const answer = await (await this.#send(model, "predict", image, { format: "rle" })).json();
      const classes = new Uint8Array(answer.width * answer.height);
      for (const { index, rle } of answer.classes) fromRuns(rle, classes, index);
      [this.#segmented, this.#classes] = [image, classes];
    }
    const [width, height] = within(image.width, image.height, side);
    return { classes: nearest(this.#classes, image.width, image.height, width, height), width, height };
  }

  async upscale(model, part, progress) {
    progress(null, `Working on ${part.width} x ${part.height} pixels on the server`);
    const response = await this.#send(model, "predict", part, { format: "png" });
    return await createImageBitmap(await response.blob());
  }
}

// The numbers of a header.
function numbers(response, name) {
  return response.headers.get(name).split(",").map(Number);
}

// Class indices at another size: those of the nearest pixels.
function nearest(classes, fromWidth, fromHeight, width, height) {
  if (fromWidth === width && fromHeight === height) return classes;
  const out = new Uint8Array(width * height);
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * fromHeight) / height) * fromWidth;
    for (let x = 0; x < width; x++) out[at++] = classes[row + Math.floor(((x + 0.5) * fromWidth) / width)];
  }
  return out;
}
