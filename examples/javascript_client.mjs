// Segment a PNG image with an exported ONNX file in Node.js; only reading and writing files differs in a browser.
//
//   npm install
//   node javascript_client.mjs MODEL.onnx IMAGE.png MASK.png

import { readFileSync, writeFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import { PNG } from "pngjs";

const [modelFile, imageFile, maskFile] = process.argv.slice(2);
const model = readFileSync(modelFile);
const facts = metadata(model);
if (facts.task !== "segment" || facts.layout !== "NCHW") throw Error("for segmentation models without --bake only");
if ((facts.image_type ?? "uint8") !== "uint8") throw Error(`for images of 8 bits only, not ${facts.image_type}`);
const { width, height, data } = PNG.sync.read(readFileSync(imageFile)); // RGBA, 8 bits
if (facts.resize !== "none" && Math.max(width, height) > Number(facts.resize.match(/^longest side at most (\d+)$/)?.[1]))
  throw Error(`images have to be resized first: ${facts.resize}`);

const [mean, std] = [facts.mean, facts.std].map((text) => text.split(", ").map(Number));
const pixels = new Float32Array(3 * height * width);
for (let channel = 0; channel < 3; channel++)
  for (let i = 0; i < height * width; i++)
    pixels[channel * height * width + i] = (data[4 * i + channel] / 255 - mean[channel]) / std[channel];

const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
const { logits } = await session.run({ image: new ort.Tensor("float32", pixels, [1, 3, height, width]) });
const [, classes, rows, columns] = logits.dims;
const y = positions(height, rows), x = positions(width, columns);
const mask = new PNG({ width, height });
const colours = facts.palette ? facts.palette.split(", ").map((text) => parseInt(text.slice(1), 16)) : [];
for (let row = 0; row < height; row++)
  for (let column = 0; column < width; column++) {
    let best = -Infinity, index = 0;
    for (let c = 0; c < classes; c++) {
      const at = (r, q) => logits.data[(c * rows + r) * columns + q];
      const [top, bottom, down] = y[row], [left, right, along] = x[column];
      const upper = at(top, left) + along * (at(top, right) - at(top, left));
      const lower = at(bottom, left) + along * (at(bottom, right) - at(bottom, left));
      const value = upper + down * (lower - upper);
      if (value > best) [best, index] = [value, c];
    }
    const colour = colours[index] ?? index * 0x010101; // the class itself as grey where the model has no palette
    mask.data.set([colour >> 16, (colour >> 8) & 255, colour & 255, 255], 4 * (row * width + column));
  }
writeFileSync(maskFile, PNG.sync.write(mask, { colorType: 2 }));

// For each pixel the two neighbouring positions of the logits, and the weight of the second.
function positions(pixels, count) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const position = Math.max(0, (pixel + 0.5) / Number(facts.output_stride) - 0.5);
    const first = Math.min(Math.floor(position), count - 1);
    return [first, Math.min(first + 1, count - 1), position - first];
  });
}

// The metadata of an ONNX file, which the runtime does not give: field 14 of the protocol buffer, pairs of strings.
function metadata(bytes) {
  const found = {};
  for (const [field, value] of fields(bytes))
    if (field === 14) {
      const entry = Object.fromEntries(fields(value).map(([key, text]) => [key, new TextDecoder().decode(text)]));
      found[entry[1]] = entry[2] ?? "";
    }
  return found;
}

// Fields of a message with their contents; numbers, which are not needed here, are skipped.
function fields(bytes) {
  const found = [];
  let place = 0;
  const varint = () => {
    let value = 0, factor = 1, byte;
    do {
      byte = bytes[place++];
      value += (byte & 127) * factor;
      factor *= 128;
    } while (byte & 128);
    return value;
  };
  while (place < bytes.length) {
    const key = varint(), kind = key & 7;
    if (kind === 2) {
      const length = varint();
      found.push([key >> 3, bytes.subarray(place, place + length)]);
      place += length;
    } else if (kind === 0) varint();
    else place += kind === 1 ? 8 : 4;
  }
  return found;
}
