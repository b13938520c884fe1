// Operations on tokens: the pixels of a map, or of a window of it, row by row.
#pragma once
#include "common.h"
#include "tiles.h"

namespace {

// Square windows over a map; those at the right and bottom end with the map. Size 0: one window, the map.
struct Windows {
  int64_t size_y, size_x, columns, count;
  Windows(const Map& map, int64_t size)
      : size_y(size ? std::min(size, map.height) : map.height),
        size_x(size ? std::min(size, map.width) : map.width),
        columns(ceil_div(map.width, size_x)),
        count(columns * ceil_div(map.height, size_y)) {}
};

struct Window {
  int64_t top, left, width, tokens;
  Window(const Map& map, const Windows& windows, int64_t index)
      : top(index / windows.columns * windows.size_y),
        left(index % windows.columns * windows.size_x),
        width(std::min(windows.size_x, map.width - left)),
        tokens(width * std::min(windows.size_y, map.height - top)) {}
  Value* token(const Map& map, int64_t image, int64_t index) const {
    return at(map, image, top + index / width, left + index % width);
  }
};

// Softmax of a row of `count` scores without its division: e^(score - largest), zeros up to a whole vector, and the
// sum.
inline float exponentials(float* row, int64_t count) {
  const int64_t size = padded(count);
  for (int64_t i = count; i < size; i++) row[i] = row[0];
  V bound = load(row);
  for (int64_t i = W; i < size; i += W) bound = max(bound, load(row + i));
  const V largest_of_all = splat(largest(bound));
  V sum = splat(0);
  for (int64_t i = 0; i < size; i += W) {
    const V value = exp(load(row + i) - largest_of_all);
    store(row + i, value);
    if (i + W <= count) sum += value;
  }
  float rest = 0;
  for (int64_t i = count / W * W; i < count; i++) rest += row[i];
  return total(sum) + rest;
}

// A row of floats as values, at the beginning of its memory: the left operand of the next product.
inline void to_values(float* row, int64_t count) {
  if constexpr (PAIR == 2)
    for (int64_t i = 0; i < count; i += W) store((Value*)row + i, load(row + i));
}

// ---- softmax attention inside windows -------------------------------------------------------------------------------
// Inputs: maps of queries, keys, values, which may be one map; a map of one image serves all images.
// p: heads, heads of keys and values, channels of a head's queries and keys, size of the windows, first channel of
// queries, keys, values, channels of a head's values. f: factor of the scores. weight, if there is one: what is added to
// the scores, (heads, queries, keys), rows padded to whole vectors. A chunk is a part of the queries of a head in a
// window.
constexpr int64_t QUERIES = 512;  // of a part

int64_t softmax_chunks(const Op& op, const Run& run) {
  const Map& out = run.maps[op.out];
  const Windows windows(out, op.p[3]);
  return out.batch * windows.count * op.p[0] * ceil_div(windows.size_y * windows.size_x, QUERIES);
}

// Keys as weights whose outputs are the keys: panels of PANEL keys, value after value.
void pack_keys(const Map& map, int64_t image, const Window& window, int64_t channel, int64_t dim, Value* packed) {
  const int64_t size = padded(window.tokens);
  for (int64_t first = 0; first < size; first += PANEL) {
    const int64_t width = size - first >= PANEL ? PANEL : W;
    for (int64_t j = 0; j < width; j++) {
      const Value* from = window.token(map, image, std::min(first + j, window.tokens - 1)) + channel;
      for (int64_t k = 0; k < paired(dim); k++) packed[pair_place(k, width, j)] = k < dim ? from[k] : Value(0);
    }
    packed += width * paired(dim);
  }
}

// Values as weights whose outputs are the channels of a head.
void pack_values(const Map& map, int64_t image, const Window& window, int64_t channel, int64_t dim, Value* packed) {
  const int64_t lanes = padded(dim);
  for (int64_t first = 0; first < lanes; first += PANEL) {
    const int64_t width = lanes - first >= PANEL ? PANEL : W, inside = std::min(width, dim - first);
    for (int64_t t = 0; t < paired(window.tokens); t++) {
      const Value* from = window.token(map, image, std::min(t, window.tokens - 1)) + channel + first;
      for (int64_t j = 0; j < width; j++)
        packed[pair_place(t, width, j)] = j < inside && t < window.tokens ? from[j] : Value(0);
    }
    packed += paired(window.tokens) * width;
  }
}

void softmax_attention(const Op& op, const Run& run, int64_t chunk) {
  const Map &q = run.maps[op.in[0]], &k = run.maps[op.in[1]], &v = run.maps[op.in[2]], &out = run.maps[op.out];
  const Windows windows(out, op.p[3]), key_windows(k, op.p[3]);
  const int64_t parts = ceil_div(windows.size_y * windows.size_x, QUERIES), heads = op.p[0];
  const int64_t dim = op.p[2], value_dim = op.p[7];
  const int64_t part = chunk % parts, head = chunk / parts % heads, index = chunk / parts / heads % windows.count;
  const int64_t image = chunk / parts / heads / windows.count, group = head / (heads / op.p[1]);
  const Window window(out, windows, index), keys(k, key_windows, index);
  const int64_t first = part * QUERIES, last = std::min(window.tokens, first + QUERIES);
  if (first >= last) return;
  const int64_t lanes = padded(value_dim), size = padded(keys.tokens);
  // Rows of scores that stay in the cache beside the keys and values, if they can.
  const int64_t block = std::min(last - first, std::max<int64_t>(2 * ROWS, run.cache / (2 * size) / ROWS * ROWS));
  const int64_t keys_size = size * paired(dim), values_size = paired(keys.tokens) * lanes;
  Value* const packed_keys = (Value*)scratch(keys_size + values_size + block * (dim + size + lanes) + PANEL);
  Value *const packed_values = packed_keys + keys_size, *const queries = packed_values + values_size;
  float *const scores = (float*)(queries + padded(block * dim)), *const sums = scores + block * size;
  const float factor = (float)op.f[0];
  pack_keys(k, std::min(image, k.batch - 1), keys, op.p[5] + group * dim, dim, packed_keys);
  pack_values(v, std::min(image, v.batch - 1), keys, op.p[6] + group * value_dim, value_dim, packed_values);
  for (int64_t begin = first; begin < last; begin += block) {
    const int64_t count = std::min(block, last - begin);
    for (int64_t t = 0; t < count; t++) {
      const Value* from = window.token(q, std::min(image, q.batch - 1), begin + t) + op.p[4] + head * dim;
      for (int64_t c = 0; c < dim; c++) queries[t * dim + c] = from[c] * factor;
    }
    Finish raw{nullptr, NONE, scores, size, nullptr, 0};
    raw.partial = true;
    gemm(queries, Left{dim, 1, 0, 1, 0, dim}, packed_keys, raw, count, size, 0, panels(size));
    float inverse[QUERIES];
    for (int64_t t = 0; t < count; t++) {
      if (op.weight[0]) {
        const float* addends = floats(op, 0) + (head * window.tokens + begin + t) * size;
        float* row = scores + t * size;
        for (int64_t i = 0; i < size; i += W) store(row + i, load(row + i) + load(addends + i));
      }
      inverse[t] = 1 / exponentials(scores + t * size, keys.tokens);
      to_values(scores + t * size, size);
    }
    raw.out = sums, raw.out_pixel = lanes;
    gemm((const Value*)scores, Left{PAIR * size, 1, 0, 1, 0, keys.tokens}, packed_values, raw, count, lanes, 0,
         panels(lanes));
    for (int64_t t = 0; t < count; t++) {
      Value* to = window.token(out, image, begin + t) + head * value_dim;
      for (int64_t c = 0; c < value_dim; c++) to[c] = sums[t * lanes + c] * inverse[t];
    }
  }
  if (padded(out.channels) > out.channels && head == heads - 1)  // other operations read whole vectors
    for (int64_t t = first; t < last; t++) {
      Value* to = window.token(out, image, t);
      for (int64_t c = out.channels; c < padded(out.channels); c++) to[c] = 0;
    }
}

// ---- depthwise convolution along the tokens of a window -------------------------------------------------------------
// p: kernel, size of the windows. weight: (kernel, channels), bias: one for each channel. Zeros beyond both ends.

int64_t token_conv_chunks(const Op& op, const Run& run) {
  const Map& out = run.maps[op.out];
  return out.batch * Windows(out, op.p[1]).count * (padded(out.channels) / W);
}

void token_conv(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Windows windows(out, op.p[1]);
  const int64_t vectors = padded(out.channels) / W, channel = chunk % vectors * W, kernel = op.p[0];
  const int64_t image = chunk / vectors / windows.count;
  const Window window(out, windows, chunk / vectors % windows.count);
  const V bias = load(op.bias[0] + channel);
  for (int64_t t = 0; t < window.tokens; t++) {
    V sum = bias;
    for (int64_t k = 0; k < kernel; k++) {
      const int64_t from = t + k - kernel / 2;
      if (from < 0 || from >= window.tokens) continue;
      sum += load(window.token(in, image, from) + channel) * load(floats(op, 0) + k * vectors * W + channel);
    }
    Value* to = window.token(out, image, t) + channel;
    store(to, sum);
    activate(op.act, to, 1);
  }
}

// ---- small operations -----------------------------------------------------------------------------------------------

// The map with rows and columns of zeros at its end, or without some.
void pad(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t channels = padded(out.channels), width = std::min(in.width, out.width);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height, inside = y < in.height ? width : 0;
    for (int64_t x = 0; x < out.width; x++) {
      const Value* from = at(in, image, y, x);
      Value* to = at(out, image, y, x);
      for (int64_t c = 0; c < channels; c += W) store(to + c, x < inside ? load(from + c) : splat(0));
    }
  }
}

// Square windows of the map as images, row by row, with zeros beyond the map.
void cut_windows(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t side = out.height, columns = ceil_div(in.width, side), count = columns * ceil_div(in.height, side);
  const int64_t channels = padded(out.channels);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / side / count, index = r / side % count;
    const int64_t y = index / columns * side + r % side, left = index % columns * side;
    const int64_t inside = y < in.height ? std::min(side, in.width - left) : 0;
    for (int64_t x = 0; x < side; x++) {
      const Value* from = at(in, image, y, left + x);
      Value* to = at(out, r / side, r % side, x);
      for (int64_t c = 0; c < channels; c += W) store(to + c, x < inside ? load(from + c) : splat(0));
    }
  }
}

// The reverse: a map of the windows in the input. The residual is added.
void join_windows(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Map* residual = op.residual < 0 ? nullptr : &run.maps[op.residual];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t side = in.height, columns = ceil_div(out.width, side), count = columns * ceil_div(out.height, side);
  const int64_t channels = padded(out.channels);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height, first = image * count + y / side * columns;
    for (int64_t x = 0; x < out.width; x++) {
      const Value* from = at(in, first + x / side, y % side, x % side);
      Value* to = at(out, image, y, x);
      for (int64_t c = 0; c < channels; c += W) {
        const V value = load(from + c);
        store(to + c, residual ? value + load(at(*residual, image, y, x) + c) : value);
      }
    }
  }
}

// Channels of the map from p[0] on. The residual is added.
void slice(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Map* residual = op.residual < 0 ? nullptr : &run.maps[op.residual];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t channels = padded(out.channels);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    for (int64_t x = 0; x < out.width; x++) {
      const Value* from = at(in, image, y, x) + op.p[0];
      Value* to = at(out, image, y, x);
      for (int64_t c = 0; c < channels; c += W) {
        const V value = load(from + c);
        store(to + c, residual ? value + load(at(*residual, image, y, x) + c) : value);
      }
      for (int64_t c = out.channels; c < channels; c++) to[c] = Value(0);
    }
  }
}

// The channels of up to four maps one after the other.
void concat(const Op& op, const Run& run, int64_t chunk) {
  const Map& out = run.maps[op.out];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t channels = padded(out.channels);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    for (int64_t x = 0; x < out.width; x++) {
      Value *const pixel = at(out, image, y, x), *to = pixel;
      for (int64_t i = 0; i < 4 && op.in[i] >= 0; i++) {
        const Map& in = run.maps[op.in[i]];
        const Value* from = at(in, image, y, x);
        to = std::copy(from, from + in.channels, to);
      }
      std::fill(to, pixel + channels, Value(0));
      activate(op.act, pixel, channels / W);
    }
  }
}

// The map plus weight[0], (height, width, channels), the same for all images.
void add_table(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t channels = padded(out.channels);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    for (int64_t x = 0; x < out.width; x++) {
      const Value* from = at(in, image, y, x);
      const float* add = floats(op, 0) + (y * out.width + x) * channels;
      Value* to = at(out, image, y, x);
      for (int64_t c = 0; c < channels; c += W) store(to + c, load(from + c) + load(add + c));
    }
  }
}

// Mean of 2x2 pixels; at the right and bottom of those that there are.
void average(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t channels = padded(out.channels);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height * 2, height = std::min<int64_t>(2, in.height - y);
    for (int64_t x = 0; x < out.width; x++) {
      const int64_t width = std::min<int64_t>(2, in.width - 2 * x);
      Value* to = at(out, image, r % out.height, x);
      for (int64_t c = 0; c < channels; c += W) {
        V sum = splat(0);
        for (int64_t i = 0; i < height * width; i++) sum += load(at(in, image, y + i / width, 2 * x + i % width) + c);
        store(to + c, sum / (float)(height * width));
      }
    }
  }
}

}  // namespace
