// Where the networks run: in this browser (static site) or on the server that served the page.
//
// Both engines have the same functions. `image` is what image.js opens, `progress(fraction, text)` may get null for a
// fraction that nobody knows, and masks are those of masks.js.
//
//   models                                   [{name, task, licence, classes?, scale?}]
//   place                                    where the networks run, in words
//   keepsImages                              whether images stay in this browser
//   load(model, progress)                    gets the network ready
//   encode(model, image, progress)           before prompt
//   prompt(model, image, {points, labels, box, multimask})         -> masks to show, [LogitMask]
//   mask(model, image, {points, labels, box, multimask, index})    -> one of them at the size of the image, {mask, iou, ...}
//   everything(model, image, side, progress) -> {masks: [{mask, iou, stability, point, area, bbox}]}
//   segment(model, image, side, progress)    -> {classes, width, height}, `side`: of the longest result
//   upscale(model, part, progress)           -> ImageBitmap of a part of an image, {bitmap, width, height}
//   largestPart                              pixels that upscale takes at once

import { BrowserEngine } from "./browser_engine.js";
import { ServerEngine } from "./server_engine.js";

export async function openEngine() {
  const response = await fetch("site.json", { cache: "no-cache" });
  if (!response.ok) throw Error(`site.json cannot be loaded (${response.status}): export the site again`);
  const site = await response.json();
  return site.engine === "browser" ? new BrowserEngine(site) : await ServerEngine.open();
}
