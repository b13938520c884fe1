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

// Whether the library multiplies values in tiles (tiles.h): the parts of weights are then packed one after the other.
// FOVEAL_TILES can be set to test that code on a processor without tile registers.
#if defined(FOVEAL_BFLOAT16) && (defined(__AMX_BF16__) || defined(FOVEAL_TILES))
#define TILES
constexpr bool PARTS_APART = true;
#else
constexpr bool PARTS_APART = false;
#endif

// Depth of packed weights: whole pairs. An odd depth ends with a zero.
template <class T = Value>
INLINE int64_t paired(int64_t depth) {
  return (depth + pair_size<T> - 1) / pair_size<T> * pair_size<T>;
}

// Left operand of a product: pixels at a fixed distance, and for each the values that one row of weights meets:
// steps_y * steps_x runs of `depth` adjacent values.
struct Left {
  int64_t pixel;            // values from a pixel to the next
  int64_t steps_y, step_y;  // number of rows of the kernel, and values between them
  int64_t steps_x, step_x;  // number of columns, and values between them
  int64_t depth;            // adjacent values: input channels, times the columns where these are adjacent too
  int64_t parts = 1;        // of each weight, which is their sum; those of a pair follow each other, or see PARTS_APART
  bool divided = false;     // whether a sum of floats is that of shorter sums, see multiply
  template <class T = Value>
  int64_t whole() const {
    return parts * steps_y * steps_x * paired<T>(depth);
  }
};

// Where sums are stored, as values or as floats.
struct Target {
  void* first;
  bool floats;
  INLINE Target(float* p) : first(p), floats(true) {}
  INLINE Target(BFloat16* p) : first(p), floats(false) {}
};

// What happens to a sum before it is stored.
struct Finish {
  const float* bias;  // one for each output channel
  int act;
  Target out;
  int64_t out_pixel;      // values from a pixel to the next
  const Value* residual;  // added after the activation; may be null
  int64_t residual_pixel;
  // Where the rows of the result lie apart, as in a map with a border: pixels of a row, and values between the end of a
  // row and the next.
  int64_t width = 0, gap = 0;
  // Where images lie further apart: rows of an image, of which the product begins with `row`, and values between them.
  int64_t height = INT64_MAX, row = 0, image_gap = 0;
  // A sum over part of the depth: it begins with the floats that are stored in `out`, or is stored as it is.
  bool resume = false, partial = false;
};

// Weights (outputs, depth of the product) as panels of PANEL columns, the last one of W if that is enough.
inline int64_t panels(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }
inline int64_t padded(int64_t channels) { return (channels + W - 1) / W * W; }

// Place of value k of output j in a panel of `width` outputs: pairs of an output are adjacent.
template <class T = Value>
INLINE int64_t pair_place(int64_t k, int64_t width, int64_t j) {
  constexpr int SIZE = pair_size<T>;
  return k / SIZE * SIZE * width + j * SIZE + k % SIZE;
}

template <class T>
inline void pack(const float* weight, int64_t outputs, int64_t taps, int64_t depth, T* packed) {
  for (int64_t first = 0; first < outputs; first += PANEL) {
    const int64_t width = padded(outputs) - first >= PANEL ? PANEL : W;
    for (int64_t tap = 0; tap < taps; tap++, packed += paired<T>(depth) * width)
      for (int64_t k = 0; k < paired<T>(depth); k++)
        for (int64_t j = 0; j < width; j++)
          packed[pair_place<T>(k, width, j)] =
              first + j < outputs && k < depth ? weight[((first + j) * taps + tap) * depth + k] : 0.0f;
  }
}

// One value of the left operand for all lanes, or a pair; the weights that it meets; and the sum with their products.
INLINE V pair_of(const float* p) { return splat(*p); }
INLINE V weights_at(const float* p) { return load(p); }
INLINE V add_products(V sum, V a, V b) { return sum + a * b; }

INLINE VU repeat(uint32_t bits) {
  VU v;
  for (int i = 0; i < W; i++) v[i] = bits;
  return v;
}
INLINE VU pair_of(const BFloat16* p) {
  uint32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return repeat(bits);
}
INLINE VU half_of(const BFloat16* p) { return repeat(p->bits); }
INLINE VU weights_at(const BFloat16* p) { return *(const VU*)p; }
INLINE V add_products(V sum, VU a, VU b) {
#if defined(VECTORS_512) && defined(__AVX512BF16__)
  return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum += (V)(a << 16) * (V)(b << 16);
  return sum + (V)(a & 0xffff0000) * (V)(b & 0xffff0000);
#endif
}

// Adds the products of one pair of values of each pixel, or of one value.
template <int R, int N, class T, class F>
INLINE void multiply_pair(const T* const (&rows)[5], int64_t pixel, int64_t k, const T* b, V (&sum)[R][N],
                          F&& pair_at) {
  decltype(weights_at(b)) weights[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; n++) weights[n] = weights_at(b + n * W * pair_size<T>);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++) {
    const auto values = pair_at(rows[r / 3] + (r % 3) * pixel + k);
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) sum[r][n] = add_products(sum[r][n], values, weights[n]);
  }
}

// Terms of a divided sum that are added one to the next: the sums of so many are added then, which rounds a third as much.
constexpr int64_t TERMS = 128;

// Weights that come next: a tile asks for its share of them, so that they are in the second-level cache when they are
// needed and come from memory meanwhile. `step`: bytes for each pair of values that the tile multiplies.
struct Next {
  const char* first;
  int64_t step;
};

// Adds the products of a tile to `sum`.
template <int R, int N, class T>
INLINE void multiply(const T* a, const Left& left, const T* b, Next next, V (&sum)[R][N]) {
  constexpr int PAIR = pair_size<T>, STEP = N * W * PAIR;
  const int64_t pixel = left.pixel, depth = left.depth;
  float earlier[R * N * W];
  int64_t terms = 0;
  bool parts_before = false;
  const int64_t passes = PARTS_APART ? left.parts : 1, parts = left.parts / passes;
  for (int64_t pass = 0; pass < passes; pass++)
    for (int64_t y = 0; y < left.steps_y; y++)
      for (int64_t x = 0; x < left.steps_x; x++)
        for (int64_t begin = 0; begin < depth; begin += TERMS) {
          const int64_t end = std::min(depth, begin + TERMS);
          if (PAIR == 1 && left.divided && terms >= TERMS) {
#pragma GCC unroll 32
            for (int i = 0; i < R * N; i++) {
              V& part = sum[i / N][i % N];
              store(earlier + i * W, parts_before ? load(earlier + i * W) + part : part);
              part = splat(0);
            }
            parts_before = true, terms = 0;
          }
          terms += end - begin;
          const T* row = a + y * left.step_y + x * left.step_x;
          const T* const rows[5] = {row, row + 3 * pixel, row + 6 * pixel, row + 9 * pixel, row + 12 * pixel};
          for (int64_t k = begin; k + PAIR <= end; k += PAIR)
            for (int64_t part = 0; part < (PAIR == 1 ? 1 : parts); part++, b += STEP) {
              // Values are read again for each part: kept over this loop, they would need more registers than there are.
              if (PAIR == 2) asm volatile("" : : : "memory");
              if (R <= 2) __builtin_prefetch(b + 65 * STEP);  // few pixels: every line is needed soon
              __builtin_prefetch(next.first, 0, 2), next.first += next.step;
              multiply_pair<R, N>(rows, pixel, k, b, sum, [](const T* p) INLINE_LAMBDA { return pair_of(p); });
            }
          if constexpr (PAIR == 2)
            for (int64_t part = 0; end % 2 && part < parts; part++, b += STEP)  // what lies behind may be no number
              multiply_pair<R, N>(rows, pixel, end - 1, b, sum, [](auto* p) INLINE_LAMBDA { return half_of(p); });
        }
  if (parts_before) {
#pragma GCC unroll 32
    for (int i = 0; i < R * N; i++) sum[i / N][i % N] += load(earlier + i * W);
  }
}

template <int R, int N, class T>
INLINE void store_tile(const Finish& finish, T* out, int64_t pixel, int64_t channel, const V (&sum)[R][N]) {
  out += pixel * finish.out_pixel + channel;
#pragma GCC unroll 32
  for (int i = 0; i < R * N; i++) store(out + i / N * finish.out_pixel + i % N * W, sum[i / N][i % N]);
}

template <int R, int N>
INLINE void finish_tile(const Finish& finish, int64_t pixel, int64_t channel, V (&sum)[R][N]) {
  if (finish.partial) return store_tile(finish, (float*)finish.out.first, pixel, channel, sum);
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
    const Value* residual = finish.residual + pixel * finish.residual_pixel + channel;
#pragma GCC unroll 32
    for (int i = 0; i < R * N; i++) sum[i / N][i % N] += load(residual + i / N * finish.residual_pixel + i % N * W);
  }
  if (PAIR == 2 && finish.out.floats) return store_tile(finish, (float*)finish.out.first, pixel, channel, sum);
  if (finish.gap) {
    Value* out = (Value*)finish.out.first + pixel * finish.out_pixel + channel;
    const int64_t rows = pixel / finish.width;
    int64_t y = (finish.row + rows) % finish.height, x = pixel % finish.width;
    out += rows * finish.gap + (finish.row + rows) / finish.height * finish.image_gap;
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) store(out + n * W, sum[r][n]);
      out += finish.out_pixel;
      if (++x == finish.width) {
        x = 0, out += finish.gap;
        if (++y == finish.height) y = 0, out += finish.image_gap;
      }
    }
    return;
  }
  store_tile(finish, (Value*)finish.out.first, pixel, channel, sum);
}

template <int R, int N, class T>
__attribute__((noinline)) void tile(const T* a, const Left& left, const T* b, Next next, const Finish& finish,
                                    int64_t pixel, int64_t channel) {
  V sum[R][N];
  if (finish.resume) {
    const float* from = (const float*)finish.out.first + pixel * finish.out_pixel + channel;
#pragma GCC unroll 32
    for (int i = 0; i < R * N; i++) sum[i / N][i % N] = load(from + i / N * finish.out_pixel + i % N * W);
  } else {
#pragma GCC unroll 32
    for (int i = 0; i < R * N; i++) sum[i / N][i % N] = splat(0);
  }
  multiply<R, N>(a + pixel * left.pixel, left, b, next, sum);
  finish_tile<R, N>(finish, pixel, channel, sum);
}

template <class T>
using Tile = void (*)(const T*, const Left&, const T*, Next, const Finish&, int64_t, int64_t);
template <class T, int N, int... R>
constexpr std::array<Tile<T>, sizeof...(R)> tiles(std::integer_sequence<int, R...>) {
  return {tile<R + 1, N, T>...};
}
// Tiles of 1, 2, ... pixels by one and by two vectors of output channels.
constexpr int NARROW_ROWS = 2 * ROWS < 14 ? 2 * ROWS : 14;
template <class T>
constexpr auto NARROW_TILES = tiles<T, 1>(std::make_integer_sequence<int, NARROW_ROWS>());
template <class T>
constexpr auto WIDE_TILES = tiles<T, 2>(std::make_integer_sequence<int, ROWS>());

template <int N, class T>
INLINE void panel_tiles(const T* a, const Left& left, const T* b, Next next, const Finish& finish, int64_t pixels,
                        int64_t begin, int64_t end, int64_t count, int64_t channel) {
  const int64_t share = next.step * (left.whole<T>() / pair_size<T>);
  for (int64_t t = begin; t < end; t++, next.first += share) {
    const int64_t from = t * pixels / count, to = (t + 1) * pixels / count;
    const Tile<T> tile_of = N == 2 ? WIDE_TILES<T>[to - from - 1] : NARROW_TILES<T>[to - from - 1];
    tile_of(a, left, b, next, finish, from, channel);
  }
}

// Part of the depth that a product covers: its first value, and the depth of the packed weights; 0: all of it.
struct Depth {
  int64_t first = 0, whole = 0;
};

// The product for `pixels` pixels and the panels from `first` up to `last`; `outputs` is padded to W. The height of a
// tile does not change the order in which a sum is added, so results do not depend on how the work is divided.
template <class T>
inline void gemm_vectors(const T* a, const Left& left, const T* packed, const Finish& finish, int64_t pixels,
                         int64_t outputs, int64_t first, int64_t last, const Depth& part) {
  if (pixels <= 0) return;
  const int64_t depth = left.whole<T>();
  // Tiles have nearly equal heights: a tile of few pixels takes nearly as long as a full one.
  const int64_t count = (pixels + ROWS - 1) / ROWS, narrow = (pixels + NARROW_ROWS - 1) / NARROW_ROWS;
  const int64_t block =
      std::max<int64_t>(1, 196608 / (int64_t)sizeof(T) / (depth * ROWS));  // pixels that stay in the cache
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t end = std::min(count, begin + block);
    for (int64_t panel = first; panel < last; panel++) {
      const bool wide = outputs - panel * PANEL >= PANEL;
      const int64_t size = PANEL * (part.whole ? left.parts * part.whole : depth);
      const T* b = packed + panel * size + left.parts * part.first * (wide ? PANEL : W);
      // Where weights are a large part of what is read, each tile asks for a share of the next panel.
      const bool asks = depth >= 128 && count < 64 && panel + 1 < last && outputs - (panel + 1) * PANEL >= PANEL;
      const Next next = asks ? Next{(const char*)(b + size), PANEL * 4 / (end - begin)} : Next{(const char*)b, 0};
      if (wide)
        panel_tiles<2>(a, left, b, next, finish, pixels, begin, end, count, panel * PANEL);
      else if (begin == 0)
        panel_tiles<1>(a, left, b, next, finish, pixels, 0, narrow, narrow, panel * PANEL);
    }
  }
}
