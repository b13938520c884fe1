// The tool that enlarges: of the whole photograph, or of a part where it is large. Before and after.

import { canvasOf, cut, pngOf, resultName, save } from "./image.js";

const $ = (id) => document.getElementById(id);

export class Upscale {
  label = "Enlarge";
  #part = null; // {x, y, width, height} in the photograph
  #result = null; // {before, after} bitmaps
  #running = null; // image that is worked on

  constructor(page, model) {
    Object.assign(this, { page, model });
    $("upscale").textContent = { 1: "Repair it", 2: "Double its size" }[model.scale] ?? `Enlarge it ${model.scale} times`;
    $("upscale").onclick = () => this.run();
    $("back").onclick = () => {
      this.#drop();
      this.show();
      page.stage.view.focus();
    };
    $("compare").oninput = () => this.draw();
    $("save-large").onclick = () => page.work("Writing the picture", () => this.save());
  }

  get hint() {
    if (this.#result) return "Left of the line: before. Right of it: after. Drag the line.";
    if (this.#whole() && this.model.scale === 1) return "A network repairs the photograph: noise and traces of compression.";
    if (this.#whole()) return `A network draws the photograph with ${this.model.scale} times the pixels in both directions.`;
    return "The photograph is large: choose the part to enlarge. Click, drag, or use the arrow keys.";
  }

  #whole() {
    return !this.image || this.image.width * this.image.height <= this.page.engine.largestPart;
  }

  // Forget the result; its bitmaps are large.
  #drop() {
    this.#result?.before.close();
    this.#result?.after.close();
    this.#result = null;
  }

  open(image) {
    this.image = image;
    this.#drop();
    this.#place([image.width / 2, image.height / 2]);
  }

  // The part around a point, inside of the photograph.
  #place([x, y]) {
    const { width, height } = this.image;
    if (this.#whole()) return (this.#part = { x: 0, y: 0, width, height });
    const side = Math.floor(Math.sqrt(this.page.engine.largestPart));
    const [columns, rows] = [Math.min(side, width), Math.min(side, height)];
    const inside = (centre, length, most) => Math.round(Math.min(Math.max(centre - length / 2, 0), most - length));
    this.#part = { x: inside(x, columns, width), y: inside(y, rows, height), width: columns, height: rows };
  }

  show() {
    const { stage } = this.page;
    stage.view.classList.add("drags");
    if (this.#result) stage.show(this.#result.after);
    else stage.show(this.image.bitmap);
    this.draw();
  }

  press(point) {
    if (this.#result) this.#slide(point);
    return true; // pressing begins to drag
  }

  drag(from, to) {
    if (this.#result) return this.#slide(to);
    this.#place(to);
    this.draw();
  }

  move(point) {
    if (this.#result) return this.#slide(point);
    this.#place(point);
    this.draw();
  }

  key(name) {
    if (name !== "Enter" || this.#result) return false;
    this.run();
    return true;
  }

  #slide([x]) {
    $("compare").value = (100 * x) / this.page.stage.width;
    this.draw();
  }

  async run() {
    const { page, image } = this, place = this.#part;
    if (this.#running === image || this.#result) return;
    this.#running = image;
    await page.work("Drawing the new pixels", async (progress) => {
      const part = await cut(image, place);
      const after = await page.engine.upscale(this.model, part, progress);
      if (this.image !== image) return [part.bitmap, after].forEach((bitmap) => bitmap.close());
      this.#result = { before: part.bitmap, after };
      if (page.tool === this) this.show();
    });
    if (this.#running === image) this.#running = null;
  }

  draw() {
    if (!this.image || this.page.tool !== this) return;
    const { stage } = this.page, result = this.#result, part = this.#part;
    $("upscale").disabled = Boolean(result);
    $("back").disabled = !result;
    for (const name of ["compare", "save-large"]) $(name).disabled = !result;
    const [width, height] = [part.width, part.height].map((side) => side * this.model.scale);
    $("sizes").textContent = `${part.width} x ${part.height} pixels become ${width} x ${height}.`;
    this.page.setHint(this.hint);
    if (!result) {
      stage.draw(null, this.#whole() ? undefined : (context, unit) => frame(context, part, stage, unit));
      return;
    }
    const share = Number($("compare").value) / 100;
    stage.draw(this.#before(result.before, share));
    stage.divider.hidden = false;
    stage.divider.style.left = `${100 * share}%`;
  }

  // The left part of the picture as it was, enlarged as browsers do it.
  #before(bitmap, share) {
    const [width, height] = this.page.stage.size, canvas = canvasOf(width, height), context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.beginPath();
    context.rect(0, 0, share * width, height);
    context.clip();
    context.drawImage(bitmap, 0, 0, width, height);
    return canvas;
  }

  async save() {
    const name = resultName(this.image, `.x${this.model.scale}.png`);
    save(await pngOf(this.#result.after), name);
  }
}

// The chosen part in the light, the rest in the dark.
function frame(context, { x, y, width, height }, { scale, size }, unit) {
  const box = [x, y, width, height].map((value) => value * scale);
  context.fillStyle = "rgb(0 0 0 / 0.5)";
  context.fillRect(0, 0, ...size);
  context.clearRect(...box);
  context.lineWidth = 2 * unit;
  context.strokeStyle = "#fff";
  context.strokeRect(...box);
}
