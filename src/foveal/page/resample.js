// Resizing as Pillow does it, so that the networks see the same pixels as in Python; preparation of a network's input.

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight(x) {
      x = Math.abs(x);
      if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
      return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
    },
  },
};

const ONE = 2 ** 22; // Pillow's weights are whole numbers, and this is 1

// For each output position: the first input position, and the weights of it and those that follow.
function taps(length, target, filter) {
  const scale = length / target, stretch = Math.max(scale, 1), reach = filter.support * stretch;
  return Array.from({ length: target }, (_, position) => {
    const centre = (position + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - reach + 0.5));
    const last = Math.min(length, Math.floor(centre + reach + 0.5));
    const weights = new Float64Array(last - first);
    let sum = 0;
    for (let i = 0; i < weights.length; i++) sum += weights[i] = filter.weight((first + i - centre + 0.5) / stretch);
    const share = ONE / sum;
    for (let i = 0; i < weights.length; i++) weights[i] = Math.trunc(weights[i] * share + (weights[i] < 0 ? -0.5 : 0.5));
    return { first, weights };
  });
}

// Resize RGBA pixels of 8 bits to RGB, rows first and rounded to 8 bits in between, as Pillow does.
export function resize({ data, width, height }, toWidth, toHeight, name) {
  const filter = FILTERS[name];
  if (!filter) throw Error(`unknown resampling filter ${name}`);
  const across = taps(width, toWidth, filter), down = taps(height, toHeight, filter);
  const narrow = new Uint8ClampedArray(3 * toWidth * height);
  for (let y = 0, out = 0; y < height; y++)
    for (let x = 0; x < toWidth; x++) {
      const { first, weights } = across[x];
      let red = ONE / 2, green = ONE / 2, blue = ONE / 2;
      for (let i = 0, at = 4 * (y * width + first); i < weights.length; i++, at += 4) {
        const weight = weights[i];
        red += weight * data[at];
        green += weight * data[at + 1];
        blue += weight * data[at + 2];
      }
      narrow[out++] = Math.floor(red / ONE);
      narrow[out++] = Math.floor(green / ONE);
      narrow[out++] = Math.floor(blue / ONE);
    }
  const pixels = new Uint8ClampedArray(3 * toWidth * toHeight), row = 3 * toWidth, sums = new Float64Array(row);
  for (let y = 0; y < toHeight; y++) {
    const { first, weights } = down[y];
    sums.fill(ONE / 2);
    for (let i = 0; i < weights.length; i++) {
      const weight = weights[i], at = (first + i) * row;
      for (let x = 0; x < row; x++) sums[x] += weight * narrow[at + x];
    }
    for (let x = 0; x < row; x++) pixels[y * row + x] = Math.floor(sums[x] / ONE);
  }
  return { pixels, width: toWidth, height: toHeight };
}

// Width and height after a resize of the long side, rounded as in Segment Anything.
export function longSide(width, height, side) {
  const scale = side / Math.max(width, height);
  return [Math.max(1, Math.floor(width * scale + 0.5)), Math.max(1, Math.floor(height * scale + 0.5))];
}

// Round half to even, as Python does.
function rounded(value) {
  const down = Math.floor(value);
  return value - down === 0.5 ? down + (down % 2) : Math.round(value);
}

// The input of a network, (1, 3, H, W), from RGBA pixels, as the description of the model says.
export function prepare(image, model) {
  let { width, height } = image;
  if (model.size) [width, height] = longSide(width, height, Math.max(...model.size));
  else if (model.max_side && Math.max(width, height) > model.max_side) {
    const scale = model.max_side / Math.max(width, height);
    [width, height] = [width, height].map((side) => Math.max(1, rounded(side * scale)));
  }
  const same = width === image.width && height === image.height;
  const { pixels } = same ? { pixels: image.data } : resize(image, width, height, model.resample);
  const [rows, columns] = model.size ?? [Math.max(height, 32), Math.max(width, 32)];
  const plane = rows * columns, step = same ? 4 : 3, input = new Float32Array(3 * plane);
  // Beyond the image: zeros where the model has a size of its own, else its edge, because networks take 32 pixels or more.
  const lastY = model.size ? height : rows, lastX = model.size ? width : columns;
  for (let channel = 0; channel < 3; channel++) {
    const gain = 1 / (255 * model.std[channel]), shift = model.mean[channel] / model.std[channel];
    for (let y = 0; y < lastY; y++)
      for (let x = 0; x < lastX; x++) {
        const from = Math.min(y, height - 1) * width + Math.min(x, width - 1);
        input[channel * plane + y * columns + x] = pixels[step * from + channel] * gain - shift;
      }
  }
  return { input, dims: [1, 3, rows, columns], width, height };
}
