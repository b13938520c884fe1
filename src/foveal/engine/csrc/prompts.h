// Operations of SAM's mask decoder: attention between few tokens and the many pixels of a map, and masks.
#pragma once
#include "scan.h"
#include "tokens.h"

namespace {

// ---- softmax attention of a few tokens to the pixels of a map -------------------------------------------------------
// Inputs: queries, a row for each head of each token, as pixels of a map with one row; keys; values. Keys or queries of
// one image serve all. work: for each image and part of the pixels, and each query, the largest score, the sum of the
// exponentials, and the sum of the values (channels). p: rows of the map in a part.

struct Reading {
  int64_t queries, lanes, parts, values, size;  // size: floats of a part
  Reading(const Op& op, const Run& run)
      : queries(run.maps[op.in[0]].width),
        lanes(padded(queries)),
        parts(ceil_div(run.maps[op.in[1]].height, op.p[0])),
        values(padded(run.maps[op.out].channels)),
        size(lanes * (2 + values)) {}
};

// sums[r][c] += sum over pixels of weights[pixel][r] * values[pixel][c], for R rows and two vectors of channels at a
// time.
inline void weighted_sums(const float* weights, int64_t lanes, const Value* values, int64_t pixel, int64_t pixels,
                          int64_t rows, int64_t channels, float* sums) {
  constexpr int R = W >= 16 ? 12 : 6, N = 2;
  constexpr int64_t SOME =
      64;  // pixels whose values of two vectors are copied, since pixels lie in the same cache sets
  float copied[SOME * N * W];
  for (int64_t begin = 0; begin < pixels; begin += SOME) {
    const int64_t some = std::min(SOME, pixels - begin);
    for (int64_t c = 0; c < channels; c += N * W) {
      const int64_t second = c + W < channels ? W : 0;  // the last vector may be alone
      for (int64_t i = 0; i < some; i++) {
        const Value* from = values + (begin + i) * pixel + c;
        store(copied + i * N * W, load(from));
        store(copied + i * N * W + W, load(from + second));
      }
      for (int64_t first = 0; first < rows; first += R) {
        const int64_t count = std::min<int64_t>(R, rows - first);
        V sum[R][N];
        for (int r = 0; r < R; r++) {
          const float* from = sums + (first + std::min<int64_t>(r, count - 1)) * channels + c;
          sum[r][0] = load(from), sum[r][1] = load(from + second);
        }
        const float* row = weights + begin * lanes + first;  // it may run over into the next row, where count < R
        for (int64_t i = 0; i < some; i++) {
          const V a = load(copied + i * N * W), b = load(copied + i * N * W + W);
#pragma GCC unroll 12
          for (int r = 0; r < R; r++) {
            const V weight = splat(row[i * lanes + r]);
            sum[r][0] += weight * a;
            sum[r][1] += weight * b;
          }
        }
        for (int r = 0; r < count; r++) {
          store(sums + (first + r) * channels + c, sum[r][0]);
          if (second) store(sums + (first + r) * channels + c + W, sum[r][1]);
        }
      }
    }
  }
}

void read_part(const Op& op, const Run& run, int64_t chunk) {
  const Map &q = run.maps[op.in[0]], &k = run.maps[op.in[1]], &v = run.maps[op.in[2]];
  const Reading s(op, run);
  const int64_t image = chunk / s.parts, part = chunk % s.parts, depth = k.channels;
  const int64_t begin = part * op.p[0], end = std::min(k.height, begin + op.p[0]), pixels = (end - begin) * k.width;
  Value* const packed = (Value*)scratch(s.lanes * paired(depth) + pixels * s.lanes + 16 * W);
  float* const scores = (float*)(packed + s.lanes * paired(depth));
  float *const largest = op.work + chunk * s.size, *const total = largest + s.lanes, *const sums = total + s.lanes;
  pack_keys(q, std::min(image, q.batch - 1), Window(q, Windows(q, 0), 0), 0, depth, packed);
  for (int64_t y = begin; y < end; y++) {
    Finish raw{nullptr, NONE, scores + (y - begin) * k.width * s.lanes, s.lanes, nullptr, 0};
    raw.partial = true;
    gemm(at(k, std::min(image, k.batch - 1), y, 0), Left{k.pixel, 1, 0, 1, 0, depth}, packed, raw, k.width, s.lanes, 0,
         panels(s.lanes));
  }
  for (int64_t r = 0; r < s.lanes; r += W) {
    V bound = load(scores + r), sum = splat(0);
    for (int64_t i = 1; i < pixels; i++) bound = max(bound, load(scores + i * s.lanes + r));
    for (int64_t i = 0; i < pixels; i++) {
      const V value = exp(load(scores + i * s.lanes + r) - bound);
      store(scores + i * s.lanes + r, value);
      sum += value;
    }
    store(largest + r, bound);
    store(total + r, sum);
  }
  clear(sums, s.queries * s.values);
  for (int64_t y = begin; y < end; y++)
    weighted_sums(scores + (y - begin) * v.width * s.lanes, s.lanes, at(v, std::min(image, v.batch - 1), y, 0), v.pixel,
                  v.width, s.queries, s.values, sums);
}

// Adds the parts of an image in their order.
void read_sums(const Op& op, const Run& run, int64_t image) {
  const Map& out = run.maps[op.out];
  const Reading s(op, run);
  const float* parts = op.work + image * s.parts * s.size;
  float* const sums = scratch(s.values);
  for (int64_t r = 0; r < s.queries; r++) {
    float bound = parts[r];
    for (int64_t p = 1; p < s.parts; p++) bound = std::max(bound, parts[p * s.size + r]);
    float* const to = sums;
    clear(to, s.values);
    float total = 0;
    for (int64_t p = 0; p < s.parts; p++) {
      const float* part = parts + p * s.size;
      const float factor = exp(splat(part[r] - bound))[0];
      total += part[s.lanes + r] * factor;
      for (int64_t c = 0; c < s.values; c += W)
        store(to + c, load(to + c) + load(part + 2 * s.lanes + r * s.values + c) * factor);
    }
    for (int64_t c = 0; c < s.values; c += W) store(at(out, image, 0, r) + c, load(to + c) / total);
  }
}

// Softmax over every `heads`-th of `count` scores. A vector holds the scores of whole tokens, if heads divide it, or a
// part of the heads of one token, if it divides them. Scores behind the last token become next to 0.
template <int HEADS>
INLINE void softmax_of_heads(float* scores, int64_t count) {
  static_assert(W % HEADS == 0 || HEADS % W == 0);
  constexpr int STEP = HEADS > W ? HEADS : W;
  if (HEADS < W)
    for (int64_t i = count; i % W; i++) scores[i] = -__builtin_inff();
  for (int first = 0; first < STEP; first += W) {
    V bound = load(scores + first), total = splat(0);
    for (int64_t i = STEP; i < count; i += STEP) bound = max(bound, load(scores + first + i));
#pragma GCC unroll 4
    for (int shift = HEADS; shift < W; shift *= 2) bound = max(bound, rotate(bound, shift));
    for (int64_t i = 0; i < count; i += STEP) {
      const V value = exp(load(scores + first + i) - bound);
      store(scores + first + i, value);
      total += value;
    }
#pragma GCC unroll 4
    for (int shift = HEADS; shift < W; shift *= 2) total += rotate(total, shift);
    const V factor = 1 / total;
    for (int64_t i = 0; i < count; i += STEP) store(scores + first + i, load(scores + first + i) * factor);
  }
}

// The same for any number of heads, one by one.
inline void softmax_of_any_heads(float* scores, int64_t count, int64_t heads) {
  for (int64_t h = 0; h < heads; h++) {
    float bound = scores[h], total = 0;
    for (int64_t i = h; i < count; i += heads) bound = scores[i] > bound ? scores[i] : bound;
    for (int64_t i = h; i < count; i += heads) total += scores[i] = exp(splat(scores[i] - bound))[0];
    for (int64_t i = h; i < count; i += heads) scores[i] /= total;
  }
}

// ---- softmax attention of the pixels of a map to a few tokens -------------------------------------------------------
// Inputs: the map of queries; keys and values, a row for each head of each token, as pixels of a map with one row; the
// addends of the scores, (1, tokens, heads). bias: addend of the result. p: heads. The residual may be of one image.
void write_map(const Op& op, const Run& run, int64_t chunk) {
  const Map &q = run.maps[op.in[0]], &k = run.maps[op.in[1]], &v = run.maps[op.in[2]], &add = run.maps[op.in[3]];
  const Map &out = run.maps[op.out], &residual = run.maps[op.residual];
  const int64_t heads = op.p[0], count = k.width, lanes = padded(count), depth = q.channels,
                values = padded(out.channels);
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t keys_size = lanes * paired(depth), values_size = paired(count) * values;
  Value* const packed_keys = (Value*)scratch(keys_size + values_size + (out.width + 1) * lanes + 16 * W);
  Value* const packed_values = packed_keys + keys_size;
  float *const bias = (float*)(packed_values + values_size), *const scores = bias + lanes;
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    if (r == rows.begin || y == 0) {
      const Window window(k, Windows(k, 0), 0);
      pack_keys(k, image, window, 0, depth, packed_keys);
      pack_values(v, image, window, 0, out.channels, packed_values);
      for (int64_t i = 0; i < lanes; i++) bias[i] = i < count ? (float)at(add, image, 0, i / heads)[i % heads] : 0;
    }
    gemm(at(q, std::min(image, q.batch - 1), y, 0), Left{q.pixel, 1, 0, 1, 0, depth}, packed_keys,
         Finish{bias, NONE, scores, lanes, nullptr, 0}, out.width, lanes, 0, panels(lanes));
    for (int64_t x = 0; x < out.width; x++) {
      float* row = scores + x * lanes;
      if (heads == 8)
        softmax_of_heads<8>(row, count);
      else
        softmax_of_any_heads(row, count, heads);
      to_values(row, lanes);
    }
    const Finish finish{
        op.bias[0],    NONE, at(out, image, y, 0), out.pixel, at(residual, std::min(image, residual.batch - 1), y, 0),
        residual.pixel};
    gemm((const Value*)scores, Left{PAIR * lanes, 1, 0, 1, 0, count}, packed_values, finish, out.width, values, 0,
         panels(values));
  }
}

// ---- small operations -----------------------------------------------------------------------------------------------

// Pixels of a row with other numbers of channels, in the order of memory. p: the first value of a row.
void regroup(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    int64_t from = op.p[0];
    for (int64_t x = 0; x < out.width; x++) {
      Value* to = at(out, image, y, x);
      for (int64_t c = 0; c < padded(out.channels); c++) {
        to[c] = c < out.channels ? at(in, image, y, from / in.channels)[from % in.channels] : Value(0);
        from += c < out.channels;
      }
    }
  }
}

// Masks, planar, of twice the size. The first input holds features of four pixels for each of its pixels, row by row, of
// C channels each; or the weights are those of a linear layer that computes them, row by row of the map. The second
// input holds the factors of the features for each mask, (1, masks, C).
void masks(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &factors = run.maps[op.in[1]], &out = run.maps[op.out];
  const Range rows(in.batch * in.height, row_parts(in, run), chunk);
  const int64_t depth = factors.channels, lanes = padded(factors.width), plane = out.height * out.width;
  const int64_t computed = op.weight[0] ? 4 * depth : 0;  // features of a pixel that are not in the map
  Value* const packed = (Value*)scratch(lanes * paired(depth) + in.width * (4 * lanes + computed) + 16 * W);
  float* const scores = (float*)(packed + lanes * paired(depth));
  Value* const features = (Value*)(scores + 4 * in.width * lanes);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / in.height, y = r % in.height;
    if (r == rows.begin || y == 0) pack_keys(factors, image, Window(factors, Windows(factors, 0), 0), 0, depth, packed);
    const Value* from = at(in, image, y, 0);
    if (computed) {
      const Finish finish{op.bias[0], op.act, features, computed, nullptr, 0};
      gemm(from, Left{in.pixel, 1, 0, 1, 0, in.channels}, products(op, 0), finish, in.width, computed, 0,
           panels(computed));
      from = features;
    }
    Finish raw{nullptr, NONE, scores, lanes, nullptr, 0};
    raw.partial = true;
    gemm(from, Left{depth, 1, 0, 1, 0, depth}, packed, raw, 4 * in.width, lanes, 0, panels(lanes));
    for (int64_t m = 0; m < out.channels; m++)
      for (int64_t dy = 0; dy < 2; dy++) {
        float* to = planar(out) + (image * out.channels + m) * plane + (2 * y + dy) * out.width;
        for (int64_t x = 0; x < out.width; x++) to[x] = scores[(x / 2 * 4 + dy * 2 + x % 2) * lanes + m];
      }
  }
}

}  // namespace
