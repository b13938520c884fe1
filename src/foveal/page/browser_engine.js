// The engine of a static site: the networks run in a worker of this browser.

import { LogitMask, within } from "./masks.js";

const GRID = 16; // points along a side when everything is looked for

export class BrowserEngine {
  keepsImages = true;
  largestPart = 512 * 512;
  place = "in this browser";
  #worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  #waiting = new Map();
  #last = 0;
  #segmented = null;
  #encoded = null; // image that was to be encoded last
  #dead = null; // error of a worker that stopped

  constructor(site) {
    this.models = site.models;
    this.#worker.onmessage = ({ data }) => this.#receive(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#dead = Error(`The worker stopped (${event.message || "it cannot be loaded"}): reload the page`);
      for (const { reject } of this.#waiting.values()) reject(this.#dead);
      this.#waiting.clear();
    };
    this.#worker.postMessage({ call: "site", options: site });
  }

  #receive({ id, progress, result, error }) {
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    if (progress) return waiting.progress(progress.fraction, progress.text);
    this.#waiting.delete(id);
    if (error) return waiting.reject(Error(error));
    if (result.place) this.place = `in this browser, ${result.place}`;
    waiting.resolve(result);
  }

  #call(call, options, progress = () => {}, transfer = []) {
    if (this.#dead) return Promise.reject(this.#dead);
    const id = ++this.#last;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, progress });
      this.#worker.postMessage({ id, call, options }, transfer);
    });
  }

  load(model, progress) {
    return this.#call("load", { name: model.name }, progress);
  }

  async encode(model, image, progress) {
    this.#encoded = image;
    const bitmap = await createImageBitmap(image.bitmap);
    if (this.#encoded !== image) return bitmap.close(); // a later photograph was opened: its embedding must be the last
    await this.#call("encode", { name: model.name, bitmap }, progress, [bitmap]);
  }

  async prompt(model, image, prompt) {
    const { iou, ...logits } = await this.#call("prompt", { name: model.name, ...prompt });
    return iou.map((value, i) => new LogitMask(logits, i, value, image));
  }

  mask(model, image, prompt) {
    return this.#call("mask", { name: model.name, ...prompt, width: image.width, height: image.height });
  }

  everything(model, image, side, progress) {
    const [width, height] = within(image.width, image.height, side);
    return this.#call("everything", { name: model.name, side: GRID, width, height }, progress);
  }

  async segment(model, image, side, progress) {
    const [width, height] = within(image.width, image.height, side);
    const bitmap = this.#segmented === image ? null : await createImageBitmap(image.bitmap);
    const result = await this.#call("segment", { name: model.name, bitmap, width, height }, progress, bitmap ? [bitmap] : []);
    this.#segmented = image;
    return result;
  }

  async upscale(model, part, progress) {
    const bitmap = await createImageBitmap(part.bitmap);
    return (await this.#call("upscale", { name: model.name, bitmap }, progress, [bitmap])).bitmap;
  }
}
