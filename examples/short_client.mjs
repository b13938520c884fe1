// Segment a PNG image in Node.js with an ONNX file that holds the preparation.
//
//   foveal export efficientvit_b0.camvid --bake --size 512x1024 --output camvid.onnx
//   npm install
//   node short_client.mjs camvid.onnx IMAGE.png MASK.png

import { readFileSync, writeFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import { PNG } from "pngjs";

const [modelFile, imageFile, maskFile] = process.argv.slice(2);
const { width, height, data } = PNG.sync.read(readFileSync(imageFile)); // RGBA, 8 bits
const pixels = Uint8Array.from(data.filter((_, i) => i % 4 < 3));
const session = await ort.InferenceSession.create(readFileSync(modelFile), { executionProviders: ["wasm"] });
const { classes } = await session.run({ image: new ort.Tensor("uint8", pixels, [1, height, width, 3]) });
const mask = new PNG({ width, height });
classes.data.forEach((index, i) => mask.data.set([index, index, index, 255], 4 * i)); // the class of each pixel as grey
writeFileSync(maskFile, PNG.sync.write(mask, { colorType: 0 }));
