// The picture on the page: two canvases (photograph, and what a tool draws over it), pointer and keys.

import { within } from "./masks.js";
import { canvasOf } from "./image.js";

const SIDE = 1400, MASK_SIDE = 1024, LEAST = 1000; // pixels of the longest side that is drawn, whatever the photograph has
const DRAG = 6; // pixels of the screen that the pointer moves before a click becomes a box

export class Stage {
  // `on`: functions click, drag, press, move and key of the current tool, all optional.
  constructor(view, on) {
    this.view = view;
    this.on = on;
    [this.picture, this.overlay] = view.querySelectorAll("canvas");
    this.divider = view.querySelector("#divider");
    view.addEventListener("pointerdown", (event) => this.#down(event));
    view.addEventListener("contextmenu", (event) => event.preventDefault());
    view.addEventListener("keydown", (event) => this.#key(event));
    view.addEventListener("blur", () => this.#cross(null));
  }

  // Show a photograph, or a part that was enlarged.
  show(source, width = source.width, height = source.height) {
    [this.width, this.height] = [width, height]; // in pixels of the photograph
    const larger = Math.max(1, LEAST / Math.max(width, height));
    const [columns, rows] = within(width * larger, height * larger, SIDE);
    for (const canvas of [this.picture, this.overlay]) Object.assign(canvas, { width: columns, height: rows });
    const context = this.picture.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, columns, rows);
    this.scale = columns / width; // drawn pixels for each pixel of the photograph
    this.view.parentElement.style.setProperty("--ratio", width / height);
    this.view.parentElement.classList.add("filled");
    this.view.hidden = false;
    this.cursor = null;
    this.divider.hidden = true;
  }

  get size() {
    return [this.overlay.width, this.overlay.height];
  }

  // Width and height of masks, which are stretched to the drawn size: their time counts with each click.
  get maskSize() {
    return within(...this.size, MASK_SIDE);
  }

  // Draw over the photograph: `pixels` (ImageData or canvas, stretched to the drawn size, or null), then `shapes(context, unit)`,
  // where `unit` is the number of drawn pixels in a pixel of the screen.
  draw(pixels, shapes) {
    const context = this.overlay.getContext("2d");
    context.clearRect(0, 0, ...this.size);
    if (pixels) context.drawImage(pixels instanceof ImageData ? this.#canvasWith(pixels) : pixels, 0, 0, ...this.size);
    this.last = [pixels, shapes];
    const unit = this.overlay.width / (this.overlay.clientWidth || this.overlay.width);
    shapes?.(context, unit);
    if (this.cursor) cross(context, this.cursor, this.scale, unit);
  }

  #canvasWith(pixels) {
    const { width, height } = pixels, canvas = (this.scratch ??= canvasOf(width, height));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  redraw() {
    this.draw(...(this.last ?? [null]));
  }

  #cross(point) {
    if (point === this.cursor) return;
    this.cursor = point;
    this.redraw();
  }

  // Point of the photograph under the pointer, within its borders.
  #point({ clientX, clientY }) {
    const box = this.overlay.getBoundingClientRect();
    const inside = (value, most) => Math.min(Math.max(value, 0), most);
    return [
      inside(((clientX - box.left) / box.width) * this.width, this.width - 0.01),
      inside(((clientY - box.top) / box.height) * this.height, this.height - 0.01),
    ];
  }

  #down(event) {
    if (event.button === 1 || event.button > 2 || !event.isPrimary) return;
    const from = this.#point(event), { clientX, clientY } = event;
    const drags = event.pointerType === "mouse" || this.view.classList.contains("drags");
    let dragged = false;
    this.view.setPointerCapture(event.pointerId);
    this.cursor = null;
    if (this.on.press?.(from)) dragged = true;
    const move = (moved) => {
      const to = this.#point(moved);
      if (!dragged && drags && Math.hypot(moved.clientX - clientX, moved.clientY - clientY) > DRAG) dragged = true;
      if (dragged) this.on.drag?.(from, to, false);
    };
    const end = (ended) => {
      this.view.removeEventListener("pointermove", move);
      this.view.removeEventListener("pointerup", end);
      this.view.removeEventListener("pointercancel", end);
      if (ended.type === "pointercancel") return dragged ? this.on.drag?.(from, from, true) : undefined;
      const background = event.button === 2 || event.altKey || event.ctrlKey; // on a Mac, control and click is a right click
      if (dragged) this.on.drag?.(from, this.#point(ended), true);
      else if (Math.hypot(ended.clientX - clientX, ended.clientY - clientY) < 4 * DRAG) this.on.click?.(from, background);
    };
    this.view.addEventListener("pointermove", move);
    this.view.addEventListener("pointerup", end);
    this.view.addEventListener("pointercancel", end);
  }

  #key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    const { ctrlKey, metaKey, altKey } = event;
    if (altKey || ((ctrlKey || metaKey) && (event.shiftKey || event.key.toLowerCase() !== "z"))) return; // no redo
    if (event.repeat && !step) return event.key === " " ? event.preventDefault() : undefined; // a key that is held
    if (step) {
      const length = (Math.max(this.width, this.height) / 100) * (event.shiftKey ? 5 : 1);
      const [x, y] = this.cursor ?? [this.width / 2, this.height / 2];
      const inside = (value, most) => Math.min(Math.max(value, 0), most - 0.01);
      this.#cross([inside(x + length * step[0], this.width), inside(y + length * step[1], this.height)]);
      this.on.move?.(this.cursor);
    } else if (!this.on.key?.(event.key, this.cursor ?? [this.width / 2, this.height / 2])) return;
    event.preventDefault();
  }
}

function cross(context, [x, y], scale, unit) {
  const [column, row, arm] = [x * scale, y * scale, 11 * unit];
  for (const [width, colour] of [[4, "#000a"], [2, "#fff"]]) {
    context.lineWidth = width * unit;
    context.strokeStyle = colour;
    context.beginPath();
    context.moveTo(column - arm, row);
    context.lineTo(column + arm, row);
    context.moveTo(column, row - arm);
    context.lineTo(column, row + arm);
    context.stroke();
  }
}

// A canvas of the photograph at its own size.
export function wholePicture(image) {
  const canvas = canvasOf(image.width, image.height);
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(image.bitmap, 0, 0);
  return canvas;
}
