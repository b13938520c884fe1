// Matrix products whose left operand is read in place from a map, with bias, activation and residual in the last step.
#pragma once
#include <algorithm>
#include <array>
#include <utility>
#include <type_traits>
#include "vector.h"

// Registers hold a tile of ROWS pixels by two vectors of output channels, or 2 * ROWS pixels by one vector.
#if defined(__AVX512F__) || (defined(FOVEAL_WIDTH) && FOVEAL_WIDTH == 16)
constexpr int ROWS = 14;
#elif defined(__aarch64__)
constexpr int ROWS = 12;
#else
constexpr int ROWS = 6;
#endif
constexpr int PANEL = 2 * W;  // output channels of a panel of packed weights

// Left operand of a product: pixels at a fixed distance, and for each the values that one row of weights meets:
// steps_y * steps_x runs of `depth` adjacent floats.
struct Left {
  int64_t pixel;            // floats from a pixel to the next
  int64_t steps_y, step_y;  // number of rows of the kernel, and floats between them
  int64_t steps_x, step_x;  // number of columns, and floats between them
  int64_t depth;            // adjacent values: input channels, times the columns where these are adjacent too
};

// What happens to a sum before it is stored.
struct Finish {
  const float* bias;  // one for each output channel
  int act;
  float* out;
  int64_t out_pixel;      // floats from a pixel to the next
  const float* residual;  // added after the activation; may be null
  int64_t residual_pixel;
  // Where the rows of the result lie apart, as in a map with a border: pixels of a row, and floats between the end of a
  // row and the next. No residual then.
  int64_t width = 0, gap = 0;
  // A sum over part of the depth: it begins with the values that are stored in `out`, or is stored as it is.
  bool resume = false, partial = false;
};

// Weights (outputs, depth of the product) as panels of PANEL columns, the last one of W if that is enough.
inline int64_t panels(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }
inline int64_t padded(int64_t channels) { return (channels + W - 1) / W * W; }

inline void pack(const float* weight, int64_t outputs, int64_t depth, float* packed) {
  for (int64_t first = 0; first < outputs; first += PANEL) {
    int64_t width = padded(outputs) - first >= PANEL ? PANEL : W;
    for (int64_t k = 0; k < depth; k++)
      for (int64_t j = 0; j < width; j++) *packed++ = first + j < outputs ? weight[(first + j) * depth + k] : 0.0f;
  }
}

// Adds the products of a tile to `sum`. On the way it asks for `next`, line after line: weights that come next are then
// in the second-level cache, where they would come from memory otherwise.
template <int R, int N, bool NEXT>
INLINE void multiply(const float* a, const Left& left, const float* b, const float* next, V (&sum)[R][N]) {
  const int64_t pixel = left.pixel, depth = left.depth;
  for (int64_t y = 0; y < left.steps_y; y++)
    for (int64_t x = 0; x < left.steps_x; x++) {
      const float* row = a + y * left.step_y + x * left.step_x;
      const float* row3 = row + 3 * pixel;
      const float* row6 = row + 6 * pixel;
      const float* row9 = row + 9 * pixel;
      const float* row12 = row + 12 * pixel;
      for (int64_t k = 0; k < depth; k++) {
        V weights[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) weights[n] = load(b + n * W);
        b += N * W;
        if (R <= 2) __builtin_prefetch(b + 64 * N * W);  // few pixels: every line is needed soon
        if (NEXT) __builtin_prefetch(next, 0, 2), next += N * W;
#pragma GCC unroll 32
        for (int r = 0; r < R; r++) {
          const float* base = r < 3 ? row : r < 6 ? row3 : r < 9 ? row6 : r < 12 ? row9 : row12;
          V value = splat(base[(r % 3) * pixel + k]);
#pragma GCC unroll 4
          for (int n = 0; n < N; n++) sum[r][n] += value * weights[n];
        }
      }
    }
}

template <int R, int N>
INLINE void finish_tile(const Finish& finish, int64_t pixel, int64_t channel, V (&sum)[R][N]) {
  float* out = finish.out + pixel * finish.out_pixel + channel;
  if (finish.partial) {
#pragma GCC unroll 32
    for (int i = 0; i < R * N; i++) store(out + i / N * finish.out_pixel + i % N * W, sum[i / N][i % N]);
    return;
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) {
    V bias = load(finish.bias + channel + n * W);
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) sum[r][n] += bias;
  }
  if (in_place(finish.act)) {
    float values[R * N * W];
#pragma GCC unroll 32
    for (int i = 0; i < R * N; i++) store(values + i * W, sum[i / N][i % N]);
    activate(finish.act, values, R * N);
#pragma GCC unroll 32
    for (int i = 0; i < R * N; i++) sum[i / N][i % N] = load(values + i * W);
  } else {
    with_act(finish.act, [&](auto act) {
#pragma GCC unroll 32
      for (int i = 0; i < R * N; i++) sum[i / N][i % N] = act(sum[i / N][i % N]);
    });
  }
  if (finish.residual) {
    const float* residual = finish.residual + pixel * finish.residual_pixel + channel;
#pragma GCC unroll 32
    for (int i = 0; i < R * N; i++) sum[i / N][i % N] += load(residual + i / N * finish.residual_pixel + i % N * W);
  }
  if (finish.gap) {
    int64_t y = pixel / finish.width, x = pixel % finish.width;
    out += y * finish.gap;
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) store(out + n * W, sum[r][n]);
      out += finish.out_pixel;
      if (++x == finish.width) x = 0, out += finish.gap;
    }
    return;
  }
#pragma GCC unroll 32
  for (int i = 0; i < R * N; i++) store(out + i / N * finish.out_pixel + i % N * W, sum[i / N][i % N]);
}

template <int R, int N, bool NEXT>
__attribute__((noinline)) void tile(const float* a, const Left& left, const float* b, const float* next,
                                    const Finish& finish, int64_t pixel, int64_t channel) {
  V sum[R][N];
  if (finish.resume) {
    const float* from = finish.out + pixel * finish.out_pixel + channel;
#pragma GCC unroll 32
    for (int i = 0; i < R * N; i++) sum[i / N][i % N] = load(from + i / N * finish.out_pixel + i % N * W);
  } else {
#pragma GCC unroll 32
    for (int i = 0; i < R * N; i++) sum[i / N][i % N] = splat(0);
  }
  multiply<R, N, NEXT>(a + pixel * left.pixel, left, b, next, sum);
  finish_tile<R, N>(finish, pixel, channel, sum);
}

using Tile = void (*)(const float*, const Left&, const float*, const float*, const Finish&, int64_t, int64_t);
template <int N, int... R>
constexpr std::array<Tile, sizeof...(R)> tiles(std::integer_sequence<int, R...>) {
  return {tile<R + 1, N, false>...};
}
// Tiles of 1, 2, ... pixels by one and by two vectors of output channels.
constexpr int NARROW_ROWS = 2 * ROWS < 14 ? 2 * ROWS : 14;
constexpr auto NARROW_TILES = tiles<1>(std::make_integer_sequence<int, NARROW_ROWS>());
constexpr auto WIDE_TILES = tiles<2>(std::make_integer_sequence<int, ROWS>());

template <int N>
INLINE void panel_tiles(const float* a, const Left& left, const float* b, const float* next, const Finish& finish,
                        int64_t pixels, int64_t begin, int64_t end, int64_t count, int64_t channel) {
  for (int64_t t = begin; t < end; t++) {
    const int64_t from = t * pixels / count, to = (t + 1) * pixels / count;
    Tile tile_of = N == 2 ? WIDE_TILES[to - from - 1] : NARROW_TILES[to - from - 1];
    // The first tile of a panel asks for all of the next one, if its height is one of the usual.
    if (next && t == begin && to - from >= ROWS - 1)
      tile_of = to - from == ROWS ? tile<ROWS, 2, true> : tile<ROWS - 1, 2, true>;
    tile_of(a, left, b, next, finish, from, channel);
  }
}

// Part of the depth that a product covers: its first value, and the depth of the packed weights; 0: all of it.
struct Depth {
  int64_t first = 0, whole = 0;
};

// The product for `pixels` pixels and the panels from `first` up to `last`; `outputs` is padded to W. The height of a
// tile does not change the order in which a sum is added, so results do not depend on how the work is divided.
inline void gemm(const float* a, const Left& left, const float* packed, const Finish& finish, int64_t pixels,
                 int64_t outputs, int64_t first, int64_t last, Depth part = {}) {
  if (pixels <= 0) return;
  const int64_t depth = left.steps_y * left.steps_x * left.depth;
  // Tiles have nearly equal heights: a tile of few pixels takes nearly as long as a full one.
  const int64_t count = (pixels + ROWS - 1) / ROWS, narrow = (pixels + NARROW_ROWS - 1) / NARROW_ROWS;
  const int64_t block =
      std::max<int64_t>(1, 196608 / (int64_t)sizeof(float) / (depth * ROWS));  // pixels that stay in the cache
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t end = std::min(count, begin + block);
    for (int64_t panel = first; panel < last; panel++) {
      const bool wide = outputs - panel * PANEL >= PANEL;
      const int64_t size = PANEL * (part.whole ? part.whole : depth);
      const float* b = packed + panel * size + part.first * (wide ? PANEL : W);
      const bool deep = depth >= 128 && count < 64;  // weights are a large part of what is read
      const float* next = deep && panel + 1 < last && outputs - (panel + 1) * PANEL >= PANEL ? b + size : nullptr;
      if (wide)
        panel_tiles<2>(a, left, b, next, finish, pixels, begin, end, count, panel * PANEL);
      else if (begin == 0)
        panel_tiles<1>(a, left, b, nullptr, finish, pixels, 0, narrow, narrow, panel * PANEL);
    }
  }
}
