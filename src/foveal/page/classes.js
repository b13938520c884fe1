// The tool that labels every pixel: colours over the photograph, a legend, opacity.

import { pngOf, resultName, save, saveJson } from "./image.js";
import { bytePng } from "./png.js";
import { wholePicture } from "./stage.js";

const $ = (id) => document.getElementById(id);

export class Classes {
  label = "Classes";
  hint = "Every pixel gets a class. Untick a class to hide its colour.";
  #result = null; // {classes, width, height} at the drawn size
  #shares = [];
  #hidden = new Set();

  constructor(page, model) {
    Object.assign(this, { page, model });
    for (const name of ["opacity", "least"]) $(name).oninput = () => this.draw();
    $("save-overlay").onclick = () => page.work("Writing the picture", () => this.saveOverlay());
    $("save-classes").onclick = () => page.work("Writing the mask", () => this.saveMask());
    $("save-shares").onclick = () => page.work("Writing the file", () => this.saveJson());
  }

  open(image) {
    this.image = image;
    this.#result = null;
    this.#hidden.clear();
    $("legend").replaceChildren();
  }

  async show() {
    const { page, image } = this;
    page.stage.show(image.bitmap);
    page.stage.view.classList.remove("drags");
    this.draw();
    if (this.#result) return;
    await page.work("Finding the classes", async (progress) => {
      const result = await page.engine.segment(this.model, image, Math.max(...page.stage.size), progress);
      if (this.image !== image) return;
      this.#result = result;
      this.#list();
      this.draw();
    });
  }

  #list() {
    const counts = new Float64Array(this.model.classes.length);
    for (const index of this.#result.classes) counts[index]++;
    this.#shares = Array.from(counts, (count) => count / this.#result.classes.length);
    const order = this.#shares.map((_, i) => i).filter((i) => counts[i]).sort((a, b) => counts[b] - counts[a]);
    $("legend").replaceChildren(...order.map((index) => this.#entry(index)));
  }

  #entry(index) {
    const { name, colour } = this.model.classes[index], item = document.createElement("li");
    const label = document.createElement("label"), box = document.createElement("input");
    const swatch = document.createElement("i"), title = document.createElement("span"), share = document.createElement("span");
    Object.assign(box, { type: "checkbox", checked: !this.#hidden.has(index) });
    box.onchange = () => {
      if (box.checked) this.#hidden.delete(index);
      else this.#hidden.add(index);
      this.draw();
    };
    swatch.style.background = `rgb(${colour})`;
    title.textContent = name;
    share.textContent = percent(this.#shares[index]);
    label.append(box, swatch, title, share);
    item.append(label);
    return item;
  }

  draw() {
    const least = Number($("least").value);
    $("least-value").textContent = `${least} %`;
    if (!this.image || this.page.tool !== this) return;
    for (const name of ["save-overlay", "save-classes", "save-shares"]) $(name).disabled = !this.#result;
    this.page.stage.draw(this.#result && this.#colours(this.#result));
  }

  #colours({ classes, width, height }) {
    const pixels = new ImageData(width, height), words = new Uint32Array(pixels.data.buffer);
    const alpha = Math.round(2.55 * Number($("opacity").value)), least = Number($("least").value) / 100;
    const words_of = this.model.classes.map(({ colour: [red, green, blue] }, index) => {
      const shown = !this.#hidden.has(index) && this.#shares[index] >= least;
      return shown ? ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0 : 0;
    });
    for (let i = 0; i < classes.length; i++) words[i] = words_of[classes[i]];
    return pixels;
  }

  async saveOverlay() {
    const { image } = this, canvas = wholePicture(image), top = document.createElement("canvas");
    const pixels = this.#colours(await this.#whole());
    if (this.image !== image) throw Error("Another photograph was opened before the picture was ready.");
    Object.assign(top, { width: pixels.width, height: pixels.height }).getContext("2d").putImageData(pixels, 0, 0);
    canvas.getContext("2d").drawImage(top, 0, 0);
    save(await pngOf(canvas), resultName(image, ".classes.png"));
  }

  async saveMask() {
    const { image } = this, { classes, width, height } = await this.#whole();
    const palette = this.model.classes.map(({ colour }) => colour);
    save(await bytePng(classes, width, height, palette), resultName(image, ".mask.png"));
  }

  async saveJson() {
    const { name, width, height } = this.image;
    const classes = this.model.classes.map((each, index) => ({ index, ...each, share: this.#shares[index] }));
    saveJson({ model: this.model.name, image: { name, width, height }, classes }, resultName(this.image, ".json"));
  }

  #whole() {
    return this.page.engine.segment(this.model, this.image, Infinity, () => {});
  }
}

function percent(share) {
  return share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}
