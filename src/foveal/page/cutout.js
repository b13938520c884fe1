// The tool that cuts out: clicks and boxes to a mask, everything to many masks.

import { enlarged, extent, toRuns } from "./masks.js";
import { pngOf, resultName, save, saveJson } from "./image.js";
import { bytePng } from "./png.js";
import { wholePicture } from "./stage.js";

const EDGE = [255, 255, 255], MOST_MASKS = 255;
const SHOWN_SIDE = 1024; // longest side of the masks of everything
const $ = (id) => document.getElementById(id);

export class Cutout {
  label = "Cut out";
  hint = matchMedia("(pointer: coarse)").matches
    ? "Tap an object, tap again to add to it. Background takes away; Box needs a drag or two corners."
    : "Click an object. Click again to add to it, right-click to take away, or drag a box around it.";
  #history = [];
  #state = empty();
  #answer = null; // masks of the state to show, the smallest first: a part before the whole
  #corner = null; // of a box that keys draw
  #box = null; // that is being dragged
  #pixels = null; // that were drawn last; memory that is new takes longer than what is drawn in it
  #running = false;
  #searching = null; // image in which everything is looked for
  #encoding = null; // {image, done}

  constructor(page, model) {
    Object.assign(this, { page, model });
    $("undo").onclick = () => this.undo();
    $("clear").onclick = () => this.clear();
    $("everything").onclick = () => this.everything();
    $("dim").oninput = () => this.draw();
    $("mode").onchange = () => this.#cursor();
    $("size").onchange = () => {
      this.#state.order = Number(checked("size"));
      this.draw();
    };
    $("save-cutout").onclick = () => page.work("Writing the cut-out", () => this.saveCutout());
    $("save-mask").onclick = () => page.work("Writing the mask", () => this.saveMask());
    $("save-json").onclick = () => page.work("Writing the file", () => this.saveJson());
  }

  open(image) {
    this.image = image;
    this.#history = [];
    this.#set(empty());
    this.page.work("Encoding the photograph", (progress) => this.#encode(progress));
  }

  // Encode the photograph, once.
  #encode(progress) {
    const { image } = this;
    if (this.#encoding?.image !== image) {
      const done = this.page.engine.encode(this.model, image, progress);
      this.#encoding = { image, done };
      done.catch(() => (this.#encoding = null)); // the next click tries again
    }
    return this.#encoding.done;
  }

  show() {
    this.page.stage.show(this.image.bitmap);
    this.#cursor();
    this.draw();
  }

  #cursor() {
    this.page.stage.view.classList.toggle("drags", checked("mode") === "box");
  }

  click(point, background) {
    if (this.#state.found) return this.#select(point);
    if (checked("mode") === "box" && !background) return this.#setCorner(point);
    const label = background || checked("mode") === "background" ? 0 : 1;
    const { points, labels, box } = this.#state;
    this.#push({ ...empty(), points: [...points, point], labels: [...labels, label], box });
  }

  drag(from, to, done) {
    const box = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
    this.#box = done ? null : box;
    if (!done || box[2] - box[0] < 1 || box[3] - box[1] < 1) return this.draw();
    this.#push({ ...empty(), points: this.#state.points, labels: this.#state.labels, box });
  }

  // The two corners of a box one after the other, for keys and for taps.
  #setCorner(point) {
    if (!this.#corner) {
      this.#corner = point;
      this.draw();
      return;
    }
    const from = this.#corner;
    this.#corner = null;
    this.drag(from, point, true);
  }

  #dropCorner() {
    [this.#corner, this.#box] = [null, null];
    this.draw();
  }

  move(point) {
    if (this.#corner) this.drag(this.#corner, point, false);
  }

  key(name, point) {
    const actions = {
      Enter: () => this.click(point, false), " ": () => this.click(point, false), x: () => this.click(point, true),
      b: () => this.#setCorner(point), z: () => this.undo(), Backspace: () => this.undo(), Delete: () => this.undo(),
      Escape: () => this.clear(), e: () => this.everything(),
    };
    const action = actions[name.length === 1 ? name.toLowerCase() : name];
    action?.();
    return Boolean(action);
  }

  undo() {
    if (this.#corner) return this.#dropCorner();
    if (this.#history.length) this.#set(this.#history.pop());
  }

  clear() {
    if (this.#corner) return this.#dropCorner();
    if (this.#history.length || hasPrompt(this.#state)) this.#push(empty());
  }

  #push(state) {
    this.#history.push(this.#state);
    this.#set(state);
  }

  #set(state) {
    this.#state = state;
    this.#answer = state.answer ?? null;
    [this.#corner, this.#box] = [null, null];
    this.draw();
    if (hasPrompt(state) && !state.answer) this.#ask();
  }

  // Ask for the masks of the current state. While an answer is awaited, only the latest state is kept.
  async #ask() {
    if (this.#running) return;
    this.#running = true;
    const { image, page } = this;
    try {
      while (this.image === image && hasPrompt(this.#state) && !this.#state.answer) {
        const state = this.#state;
        await page.work("", async (progress) => {
          await this.#encode(progress);
          if (this.image !== image) return;
          const masks = await page.engine.prompt(this.model, image, request(state));
          masks.forEach((mask, index) => (mask.index = index));
          const best = masks.reduce((a, b) => (b.iou > a.iou ? b : a));
          state.answer = masks.sort((a, b) => a.rank - b.rank);
          state.order = masks.indexOf(best);
        });
        if (!state.answer) {
          this.#history = this.#history.filter((each) => each !== state); // it failed, and the page said why
          if (this.#state === state) this.#set(this.#history.pop() ?? empty());
        } else if (this.#state === state) this.#set(state);
      }
    } finally {
      this.#running = false;
    }
    if (this.image !== image && hasPrompt(this.#state) && !this.#state.answer) this.#ask();
  }

  async everything() {
    const { image, page } = this;
    if ($("everything").disabled || this.#searching === image) return;
    this.#searching = image;
    await page.work("Looking for objects", async (progress) => {
      await this.#encode(progress);
      if (this.image !== image) return;
      const { masks } = await page.engine.everything(this.model, image, SHOWN_SIDE, progress);
      if (this.image !== image) return;
      if (!masks.length) throw Error("No object was found: click one instead.");
      const shown = (mask) => enlarged(mask, ...page.stage.maskSize);
      const found = masks.slice(0, MOST_MASKS).map((each) => ({ ...each, shown: shown(each) }));
      this.#push({ ...empty(), found });
    });
    if (this.#searching === image) this.#searching = null;
  }

  // Choose the smallest of all objects at a point.
  #select([x, y]) {
    const [width, height] = this.page.stage.maskSize, { image } = this;
    const place = Math.floor((y * height) / image.height) * width + Math.floor((x * width) / image.width);
    const chosen = this.#state.found.filter(({ shown }) => shown.mask[place]).sort((a, b) => a.area - b.area)[0];
    if (chosen) this.#push({ ...this.#state, chosen });
  }

  get current() {
    if (this.#state.found) return this.#state.chosen;
    return this.#answer?.[this.#state.order] ?? null;
  }

  draw() {
    if (!this.image || this.page.tool !== this) return;
    const { stage } = this.page, { points, labels, box, found, chosen } = this.#state, mask = this.current;
    const shown = mask && (mask.shown ?? mask.at(...stage.maskSize));
    const pixels = found && !chosen ? coloured(found, stage.maskSize) : shown && this.#spotlight(shown);
    const corner = this.#corner;
    stage.draw(pixels, (context, unit) => {
      for (const each of [box, this.#box]) if (each) rectangle(context, each, stage.scale, unit);
      points.forEach((point, i) => dot(context, point, labels[i], stage.scale, unit));
      if (corner) dot(context, corner, 1, stage.scale, unit);
    });
    this.#controls(mask, shown);
  }

  #spotlight(shown) {
    const { width, height } = shown;
    if (this.#pixels?.width !== width || this.#pixels.height !== height) this.#pixels = new ImageData(width, height);
    return spotlight(shown, $("dim").value / 100, this.#pixels);
  }

  #controls(mask, shown) {
    const { found, chosen } = this.#state, several = !found && this.#answer?.length > 1;
    $("size").disabled = !several;
    for (const input of $("size").querySelectorAll("input")) input.checked = several && Number(input.value) === this.#state.order;
    $("undo").disabled = !(this.#history.length || this.#corner);
    $("clear").disabled = !(hasPrompt(this.#state) || found || this.#corner);
    $("everything").disabled = Boolean(found);
    for (const name of ["save-cutout", "save-mask"]) $(name).disabled = !mask;
    $("save-mask").disabled = !mask && !found;
    $("save-json").disabled = !mask && !found;
    const { area, width, height } = mask?.shown ? mask : (shown ?? {}), share = (100 * area) / (width * height);
    const text = mask ? `${share.toFixed(share < 10 ? 1 : 0)} % of the photograph. The network rates its mask ${mask.iou.toFixed(2)} of 1.` : "";
    $("found").textContent = found && !chosen ? `${found.length} objects. Click one to choose it.` : text;
  }

  // The mask at the size of the photograph.
  async #whole() {
    const { width, height } = this.image, { current } = this;
    if (this.#state.found) {
      const scale = [width / current.width, height / current.height];
      const point = current.point?.map((value, i) => value * scale[i]);
      return { ...current, ...enlarged(current, width, height), point };
    }
    return await this.page.engine.mask(this.model, this.image, { ...request(this.#state), index: this.current.index });
  }

  async saveCutout() {
    const { image } = this, canvas = wholePicture(image), context = canvas.getContext("2d");
    const { mask } = await this.#whole();
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < mask.length; i++) if (!mask[i]) pixels.data[4 * i + 3] = 0;
    context.putImageData(pixels, 0, 0);
    save(await pngOf(canvas), resultName(image, ".cutout.png"));
  }

  async saveMask() {
    const { image } = this, { width, height } = image, { found, chosen } = this.#state;
    if (found && !chosen) {
      const numbers = new Uint8Array(found[0].width * found[0].height); // the number of the best mask with the pixel
      for (let k = found.length; k > 0; k--) found[k - 1].mask.forEach((inside, i) => inside && (numbers[i] = k));
      const [columns, rows] = [found[0].width, found[0].height];
      return save(await bytePng(numbers, columns, rows), resultName(image, ".masks.png"));
    }
    const values = (await this.#whole()).mask.map((inside) => 255 * inside);
    save(await bytePng(values, width, height), resultName(image, ".mask.png"));
  }

  async saveJson() {
    const { image } = this, { found, chosen, points, labels, box } = this.#state, { name, width, height } = image;
    const about = { model: this.model.name, image: { name, width, height } };
    const record = (mask) => ({
      segmentation: toRuns(mask), ...extent(mask), predicted_iou: mask.iou,
      ...(mask.point && { point_coords: [mask.point], stability_score: mask.stability }),
    });
    const content = found && !chosen ? { masks: found.map(record) } : { points, labels, box, masks: [record(await this.#whole())] };
    saveJson({ ...about, ...content }, resultName(image, ".json"));
  }
}

function empty() {
  return { points: [], labels: [], box: null, found: null };
}

function hasPrompt({ points, box }) {
  return points.length > 0 || box !== null;
}

function request({ points, labels, box }) {
  return { points, labels, box, multimask: points.length === 1 && !box };
}

function checked(name) {
  return document.querySelector(`input[name=${name}]:checked`)?.value;
}

// Everything but the mask in the dark, with a light line of two pixels along its edge; `pixels` are written.
function spotlight({ mask, width, height }, dim, pixels) {
  const words = new Uint32Array(pixels.data.buffer);
  const dark = (Math.round(235 * dim) << 24) >>> 0, light = 0xffffffff;
  for (let i = 0; i < words.length; i++) words[i] = mask[i] ? 0 : dark;
  const mark = (x, y) => {
    if (x >= 0 && y >= 0 && x < width && y < height && !mask[y * width + x]) words[y * width + x] = light;
  };
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      if (!mask[i]) continue;
      const inside = mask[i - 1] && mask[i + 1] && mask[i - width] && mask[i + width];
      if (!inside) for (let step = -2; step <= 2; step++) (mark(x + step, y), mark(x, y + step));
    }
  return pixels;
}

// All masks in colours, the smallest above.
function coloured(found, [width, height]) {
  const pixels = new ImageData(width, height), { data } = pixels;
  const order = found.map((each, i) => [each, i]).sort((a, b) => b[0].area - a[0].area);
  for (const [{ shown: { mask } }, number] of order) {
    const [red, green, blue] = colour(number);
    for (let i = 0; i < mask.length; i++) {
      if (!mask[i]) continue;
      const x = i % width, edge = (x && !mask[i - 1]) || (x < width - 1 && !mask[i + 1]) || !mask[i - width] || !mask[i + width];
      const at = 4 * i;
      [data[at], data[at + 1], data[at + 2]] = edge ? EDGE : [red, green, blue];
      data[at + 3] = edge ? 230 : 140;
    }
  }
  return pixels;
}

// Colours that differ: hues at the golden angle.
function colour(number) {
  const hue = (number * 137.5) % 360, channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (0.55 - 0.4 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

function dot(context, [x, y], label, scale, unit) {
  context.beginPath();
  context.arc(x * scale, y * scale, 7 * unit, 0, 2 * Math.PI);
  context.fillStyle = label ? "#0b8f87" : "#c43d2e";
  context.fill();
  context.lineWidth = 2 * unit;
  context.strokeStyle = "#fff";
  context.stroke();
  context.beginPath(); // a plus or a minus, so that colour is not all that tells them apart
  context.moveTo((x * scale) - 3 * unit, y * scale);
  context.lineTo((x * scale) + 3 * unit, y * scale);
  if (label) {
    context.moveTo(x * scale, y * scale - 3 * unit);
    context.lineTo(x * scale, y * scale + 3 * unit);
  }
  context.stroke();
}

function rectangle(context, [x1, y1, x2, y2], scale, unit) {
  for (const [width, colour] of [[4, "#0008"], [2, "#fff"]]) {
    context.lineWidth = width * unit;
    context.strokeStyle = colour;
    context.strokeRect(x1 * scale, y1 * scale, (x2 - x1) * scale, (y2 - y1) * scale);
  }
}
