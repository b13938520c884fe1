// The page: opens the engine, takes photographs, shows tools, progress and errors.

import { Classes } from "./classes.js";
import { Cutout } from "./cutout.js";
import { openEngine } from "./engine.js";
import { imageIn, openExample, openImage } from "./image.js";
import { Stage } from "./stage.js";
import { Upscale } from "./upscale.js";

const TOOLS = [["prompt", Cutout], ["segment", Classes], ["upscale", Upscale]]; // by task
const QUIET = 150; // milliseconds of work that show no progress, so that nothing flickers
const TOUCH = matchMedia("(pointer: coarse)").matches;
const $ = (id) => document.getElementById(id);

class Page {
  tools = new Map(); // by task
  tool = null;
  image = null;
  ready = null; // done when the tools exist
  #jobs = new Set();
  #chosen = 0; // photographs that were chosen so far
  #shown = 0; // number of the one that is shown

  async start() {
    this.stage = new Stage($("view"), {});
    this.#listen();
    this.ready = this.#begin();
    await this.ready.catch((error) => this.fail(error));
  }

  async #begin() {
    this.engine = await openEngine();
    for (const [task, Tool] of TOOLS) {
      const model = this.engine.models.find((each) => each.task === task);
      if (model) this.tools.set(task, new Tool(this, model));
    }
    if (!this.tools.size) throw Error("There is no model here for clicks, classes or enlarging.");
    this.#tabs();
    this.#say();
    this.select(this.tools.keys().next().value);
    document.documentElement.dataset.state = "ready";
    // The networks are needed in any case, unless the visitor saves data.
    if (!navigator.connection?.saveData) this.work("", (progress) => this.engine.load(this.tool.model, progress));
  }

  #say() {
    const { keepsImages, place } = this.engine;
    $("place").textContent = keepsImages ? "Runs in this browser" : `Runs ${place}`;
    $("privacy").textContent = keepsImages
      ? "Photographs stay in this browser. Nothing is uploaded."
      : `Photographs are sent to ${location.host} only, and are not stored.`;
    $("about").textContent = [...this.tools.values()].map(({ model }) => `${model.name} (${model.licence})`).join(", ");
  }

  #tabs() {
    const buttons = [...this.tools].map(([task, tool]) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", id: `tab-${task}`, role: "tab", textContent: tool.label });
      button.setAttribute("aria-controls", `panel-${task}`);
      button.onclick = () => this.select(task);
      return button;
    });
    $("tabs").replaceChildren(...buttons);
    $("tabs").onkeydown = ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key], at = buttons.indexOf(document.activeElement);
      if (step && at >= 0) buttons[(at + step + buttons.length) % buttons.length].focus();
    };
  }

  select(task) {
    this.tool = this.tools.get(task);
    for (const other of this.tools.keys()) {
      $(`panel-${other}`).hidden = other !== task;
      $(`tab-${other}`).setAttribute("aria-selected", String(other === task));
      $(`tab-${other}`).tabIndex = other === task ? 0 : -1;
    }
    for (const name of ["click", "drag", "press", "move", "key"])
      this.stage.on[name] = this.tool[name] && ((...given) => this.tool[name](...given));
    this.setHint(this.tool.hint);
    $("view").setAttribute("aria-label", `Photograph, ${this.tool.label}`);
    if (this.image) this.tool.show();
  }

  setHint(text) {
    if ($("hint").textContent !== text) $("hint").textContent = text;
  }

  async open(promise) {
    const number = ++this.#chosen;
    await this.work("Opening the photograph", async () => {
      const [image] = await Promise.all([promise, this.ready]);
      if (number < this.#shown) return image.bitmap.close(); // one that was chosen later is shown already
      this.#shown = number;
      this.#error();
      this.image?.bitmap.close();
      this.image = image;
      $("start").hidden = true;
      $("another").hidden = false;
      this.stage.show(image.bitmap);
      for (const tool of this.tools.values()) tool.open(image);
      this.tool.show();
    });
  }

  // Do something, with its progress on the page. Errors are shown in one line.
  async work(text, job) {
    const state = { text, fraction: null, shown: false };
    this.#jobs.add(state);
    const timer = setTimeout(() => {
      state.shown = true;
      this.#progress();
    }, QUIET);
    this.#progress();
    try {
      await job((fraction, words) => {
        Object.assign(state, { fraction, text: words ?? state.text });
        this.#progress();
      });
    } catch (error) {
      this.fail(error);
    } finally {
      clearTimeout(timer);
      this.#jobs.delete(state);
      this.#progress();
      // The button that began it may be hidden or disabled now, and keys would reach nothing.
      if (text && this.image && document.activeElement === document.body) $("view").focus({ preventScroll: true });
      if (this.engine?.keepsImages && this.engine.place !== "in this browser") $("place").textContent = `Runs ${this.engine.place}`;
    }
  }

  #progress() {
    const last = [...this.#jobs].filter((job) => job.shown && job.text).pop();
    $("busy").hidden = !last;
    $("view").classList.toggle("waits", Boolean(last));
    document.documentElement.dataset.busy = String(this.#jobs.size > 0);
    if (!last) return;
    $("busy-text").textContent = last.text;
    if (last.fraction === null) $("progress").removeAttribute("value");
    else $("progress").value = last.fraction;
  }

  fail(error) {
    this.#error(String(error?.message ?? error));
  }

  #error(text = "") {
    $("error").hidden = !text;
    $("error-text").textContent = text;
  }

  #listen() {
    $("camera").hidden = !TOUCH;
    $("paste").hidden = TOUCH;
    $("dismiss").onclick = () => this.#error();
    for (const [button, input] of [["choose", "file"], ["another", "file"], ["camera", "camera-file"]])
      $(button).onclick = () => $(input).click();
    for (const name of ["file", "camera-file"])
      $(name).onchange = ({ target }) => {
        if (target.files[0]) this.open(openImage(target.files[0]));
        target.value = "";
      };
    for (const button of $("examples").querySelectorAll("button"))
      button.onclick = () => this.open(openExample(button.dataset.example));
    addEventListener("paste", ({ clipboardData }) => this.#take(clipboardData));
    addEventListener("dragover", (event) => {
      event.preventDefault();
      $("stage").classList.add("dragged");
    });
    addEventListener("dragleave", (event) => event.relatedTarget || $("stage").classList.remove("dragged"));
    addEventListener("drop", (event) => {
      event.preventDefault();
      $("stage").classList.remove("dragged");
      this.#take(event.dataTransfer);
    });
    addEventListener("resize", () => this.image && this.stage.redraw());
  }

  #take(transfer) {
    const file = imageIn(transfer);
    if (file) this.open(openImage(file));
    else if (transfer?.types.length) this.fail(Error("That is no image file."));
  }
}

new Page().start();
