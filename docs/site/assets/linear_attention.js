// The figure of the page "Linear attention" as something to play with. Without JavaScript the picture stays.
//
// Random queries, keys and values are multiplied in both orders, step by step: the left order fills a matrix of all pairs of
// positions, the right one a state whose size does not depend on their number. Both results are compared at the end.

(() => {
  const CHANNELS = 8;
  const picture = document.querySelector('img[src$="linear_attention.svg"]');
  if (!picture) return;

  const figure = document.createElement("div");
  figure.className = "attention-figure";
  figure.innerHTML = `
    <div class="attention-controls">
      <button type="button" class="md-button">Play</button>
      <label>positions N <input type="range" min="4" max="64" value="24" step="4"> <output></output></label>
    </div>
    <div class="attention-panels">
      <section><h4>all pairs first</h4><canvas role="img" aria-label="matrix of all pairs of positions"></canvas><p></p></section>
      <section><h4>the state first</h4><canvas role="img" aria-label="state of channels by channels"></canvas><p></p></section>
    </div>
    <p class="attention-result" aria-live="polite"></p>`;
  (picture.closest("p") ?? picture).replaceWith(figure);
  const button = figure.querySelector("button");
  const slider = figure.querySelector("input");
  const size = figure.querySelector("output");
  const [left, right] = figure.querySelectorAll("canvas");
  const [leftText, rightText] = figure.querySelectorAll("section p");
  const result = figure.querySelector(".attention-result");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let data, step = 0, timer = null;

  // Numbers that look random and are the same each time.
  function* numbers(seed) {
    for (;;) {
      seed = (1664525 * seed + 1013904223) % 4294967296;
      yield seed / 2147483648 - 1;
    }
  }

  function reset() {
    const count = Number(slider.value);
    const source = numbers(7);
    const rows = (f) => Array.from({ length: count }, () => Array.from({ length: CHANNELS }, () => f(source.next().value)));
    data = {
      count,
      q: rows((x) => Math.max(x, 0) + 0.01), // phi is relu; a little more, so that no query is all zeros
      k: rows((x) => Math.max(x, 0) + 0.01),
      v: rows((x) => x),
      pairs: [], // rows of the matrix of all pairs, as far as they are computed
      state: Array.from({ length: CHANNELS }, () => new Array(CHANNELS + 1).fill(0)),
      outLeft: [],
      outRight: [],
    };
    size.textContent = `${count}`;
    step = 0;
    draw();
  }

  // One of 2 N steps. Left: half of a row of pairs. Right: N positions into the state, then N outputs from it.
  function advance() {
    const { count, q, k, v, state } = data;
    if (step >= 2 * count) return false;
    if (step % 2 === 0) {
      const weights = k.map((key) => dot(q[step / 2], key));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      data.pairs.push(weights);
      data.outLeft.push(v[0].map((_, c) => weights.reduce((sum, weight, j) => sum + weight * v[j][c], 0) / total));
    }
    if (step < count) {
      k[step].forEach((key, row) => {
        v[step].forEach((value, column) => (state[row][column] += key * value));
        state[row][CHANNELS] += key;
      });
    } else {
      const query = q[step - count];
      const sums = state[0].map((_, column) => query.reduce((sum, value, row) => sum + value * state[row][column], 0));
      data.outRight.push(sums.slice(0, CHANNELS).map((sum) => sum / sums[CHANNELS]));
    }
    step++;
    return true;
  }

  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

  function draw() {
    const { count, pairs, state, outRight } = data;
    const most = Math.max(1e-9, ...pairs.flat());
    grid(left, count, count, (row, column) => (row < pairs.length ? pairs[row][column] / most : 0));
    const largest = Math.max(1e-9, ...state.flat().map(Math.abs));
    grid(right, CHANNELS, CHANNELS + 1, (row, column) => Math.abs(state[row][column]) / largest, count);
    const taken = Math.min(step, count);
    const perPosition = CHANNELS * (CHANNELS + 1);
    leftText.textContent =
      `${count} x ${count} = ${count * count} numbers; row ${pairs.length} of ${count}; ` +
      `${2 * pairs.length * count * CHANNELS} multiplications`;
    rightText.textContent =
      `${CHANNELS} x ${CHANNELS + 1} = ${perPosition} numbers; ${taken} positions added, ${outRight.length} answered; ` +
      `${perPosition * (taken + outRight.length)} multiplications`;
    result.textContent = step < 2 * count ? "" : `The largest difference of the results: ${difference().toExponential(1)}.`;
  }

  function difference() {
    return Math.max(...data.outLeft.map((row, i) => Math.max(...row.map((x, c) => Math.abs(x - data.outRight[i][c])))));
  }

  // Draw a matrix of values from 0 to 1. With `scale` a cell is as large as in a matrix of that many rows.
  function grid(canvas, rows, columns, value, scale = rows) {
    const width = (canvas.clientWidth || 240) * (devicePixelRatio || 1);
    const cell = width / Math.max(scale, CHANNELS + 1);
    canvas.width = width;
    canvas.height = rows * cell;
    const context = canvas.getContext("2d");
    const style = getComputedStyle(figure);
    context.strokeStyle = style.color;
    context.fillStyle = style.getPropertyValue("--md-accent-fg-color") || "#4051b5";
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < columns; column++) {
        context.globalAlpha = 0.08 + 0.92 * value(row, column);
        context.fillRect(column * cell + 0.5, row * cell + 0.5, cell - 1, cell - 1);
      }
    context.globalAlpha = 0.6;
    context.strokeRect(0.5, 0.5, columns * cell - 1, rows * cell - 1);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  }

  function play() {
    if (timer) return stop();
    if (step >= 2 * data.count) reset();
    if (still) {
      while (advance());
      return draw();
    }
    button.textContent = "Pause";
    timer = setInterval(() => {
      if (!advance()) stop();
      draw();
    }, 3000 / data.count);
  }

  button.addEventListener("click", play);
  slider.addEventListener("input", () => (stop(), reset()));
  addEventListener("resize", draw);
  reset();
  while (step < data.count && advance());
  draw();
})();
