// Photographs: from a file, the clipboard or an address of this site to upright pixels, and back to files.

const MOST_PIXELS = 100e6;
const LONGEST = 16384; // pixels of a side that every browser's canvas has

// Open a file. The browser turns the photograph upright, as its EXIF orientation says.
export async function openImage(file, name = file.name || "photograph") {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw Error(`${name} is no image that this browser can read: use JPEG, PNG or WebP.`);
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS || Math.max(width, height) > LONGEST) {
    bitmap.close();
    const size = `${width} x ${height} pixels`;
    throw Error(`${name} has ${size}, more than a browser can hold: use the command foveal, which has no such limit.`);
  }
  return { name, file, bitmap, width, height };
}

export async function openExample(path) {
  const response = await fetch(path);
  if (!response.ok) throw Error(`${path} cannot be loaded (${response.status}).`);
  return await openImage(await response.blob(), path.split("/").pop());
}

// The first image of what was dropped or pasted.
export function imageIn(transfer) {
  const files = [...(transfer?.files ?? [])];
  return files.find((file) => file.type.startsWith("image/")) ?? files[0];
}

export function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  return Object.assign(canvas, { width, height });
}

export function pngOf(source) {
  let canvas = source;
  if (!(source instanceof HTMLCanvasElement)) {
    canvas = canvasOf(source.width, source.height);
    canvas.getContext("2d").drawImage(source, 0, 0);
  }
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(Error("This browser cannot write so large an image."))), "image/png"),
  );
}

// A part of an image, as an image.
export async function cut(image, { x, y, width, height }) {
  return { name: image.name, bitmap: await createImageBitmap(image.bitmap, x, y, width, height), width, height };
}

// Name of a result: that of the photograph, with another ending.
export function resultName(image, ending) {
  return image.name.replace(/\.[^.]*$/, "") + ending;
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export function saveJson(value, name) {
  save(new Blob([JSON.stringify(value)], { type: "application/json" }), name);
}
