// Depthwise convolution of one row of a map.
#pragma once
#include <array>
#include <utility>
#include "vector.h"

// Channels are taken by two vectors where values are pairs (load_pairs) and registers are many, else by one.
constexpr int TOGETHER = PAIR == 2 && W == 16 ? 2 : 1;

// Weights (channels, K, K) as [channels / N / W][K * K][N][W] for N = TOGETHER; what is left over with N = 1.
inline void pack_depthwise(const float* weight, int64_t channels, int64_t taps, float* packed) {
  for (int64_t first = 0, n; first < channels; first += n * W) {
    n = first + TOGETHER * W <= (channels + W - 1) / W * W ? TOGETHER : 1;
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < W; j++) {
          const int64_t channel = first + j * n + i;
          *packed++ = channel < channels ? weight[channel * taps + tap] : 0.0f;
        }
  }
}

// N vectors of channels: values of a map, or floats.
template <int N>
INLINE void load_channels(const Value* p, V (&to)[N]) {
  if constexpr (N == 1)
    to[0] = load(p);
  else
    load_pairs(p, to[0], to[1]);
}
template <int N>
INLINE void store_channels(Value* p, const V (&from)[N]) {
  if constexpr (N == 1)
    store(p, from[0]);
  else
    store_pairs(p, from[0], from[1]);
}
template <int N>
INLINE void load_biases(const float* p, V (&to)[N]) {
  if constexpr (N == 1) {
    to[0] = load(p);
  } else {
    VI even;
    for (int i = 0; i < W; i++) even[i] = 2 * i;
    to[0] = lanes_of(load(p), load(p + W), even), to[1] = lanes_of(load(p), load(p + W), even + 1);
  }
}

// The parts of a row: pixels of the kernel's rows, weights, biases and results of some channels.
struct DepthwiseRow {
  const Value* const* rows;
  int64_t offset, pixel;  // values from `rows` to the first pixel, and from a pixel to the next
  const float *weights, *bias;
  Value* out;
  int64_t out_pixel;
};

// X output pixels, all channels from `begin` to `end`.
template <int K, int S, int X, int N>
__attribute__((noinline)) void depthwise_block(const Cheap& act, const DepthwiseRow& row, int64_t begin, int64_t end) {
  const float* weights = row.weights + begin * K * K;
  const int64_t pixel = row.pixel, out_pixel = row.out_pixel;
  for (int64_t c = begin; c < end; c += N * W, weights += K * K * N * W) {
    V sum[X][N], bias[N];
    load_biases<N>(row.bias + c, bias);
#pragma GCC unroll 32
    for (int i = 0; i < X * N; i++) sum[i / N][i % N] = bias[i % N];
#pragma GCC unroll 7
    for (int y = 0; y < K; y++) {
      const Value* from = row.rows[y] + row.offset + c;
      V taps[K * N];
#pragma GCC unroll 14
      for (int k = 0; k < K * N; k++) taps[k] = load(weights + (y * K * N + k) * W);
#pragma GCC unroll 32
      for (int i = 0; i < (X - 1) * S + K; i++) {
        V value[N];
        load_channels<N>(from + i * pixel, value);
#pragma GCC unroll 16
        for (int x = 0; x < X; x++)
#pragma GCC unroll 2
          for (int n = 0; n < N; n++)
            if (i - x * S >= 0 && i - x * S < K) sum[x][n] += value[n] * taps[(i - x * S) * N + n];
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < X * N; i++) {
      V& value = sum[i / N][i % N];
      value = act.hard ? HardSwish()(value) : act.bounds(value);
    }
#pragma GCC unroll 16
    for (int x = 0; x < X; x++) store_channels<N>(row.out + x * out_pixel + c, sum[x]);
  }
}

using DepthwiseBlock = void (*)(const Cheap&, const DepthwiseRow&, int64_t, int64_t);
template <int K, int S, int N, int... X>
constexpr std::array<DepthwiseBlock, sizeof...(X)> depthwise_blocks(std::integer_sequence<int, X...>) {
  return {depthwise_block<K, S, X + 1, N>...};
}

// Row of `width` output pixels, in blocks of nearly equal width. `rows` point to the K input rows, at the leftmost
// pixel under the kernel.
template <int K, int S>
void depthwise_row_of(const Value* const* rows, int64_t pixel, const float* weights, const float* bias, int act,
                      Value* out, int64_t out_pixel, int64_t width, int64_t channels) {
  constexpr auto sequence = std::make_integer_sequence<int, 8>();
  constexpr auto blocks = depthwise_blocks<K, S, TOGETHER>(sequence), rest = depthwise_blocks<K, S, 1>(sequence);
  const Cheap cheap(act);
  const int64_t count = (width + 7) / 8, together = channels / (TOGETHER * W) * TOGETHER * W;
  for (int64_t i = 0; i < count; i++) {
    const int64_t from = i * width / count, pixels = (i + 1) * width / count - from;
    const DepthwiseRow row{rows, from * S * pixel, pixel, weights, bias, out + from * out_pixel, out_pixel};
    blocks[pixels - 1](cheap, row, 0, together);
    if (together < channels) rest[pixels - 1](cheap, row, together, channels);
  }
}

// For the other kernels and strides.
template <int N>
void depthwise_row_any(const DepthwiseRow& row, int kernel, int stride, int act, int64_t width, int64_t begin,
                       int64_t end) {
  const Cheap cheap(act);
  for (int64_t x = 0; x < width; x++)
    for (int64_t c = begin; c < end; c += N * W) {
      V sum[N], value[N];
      load_biases<N>(row.bias + c, sum);
      const float* tap = row.weights + c * kernel * kernel;
      for (int y = 0; y < kernel; y++)
        for (int k = 0; k < kernel; k++, tap += N * W) {
          load_channels<N>(row.rows[y] + (x * stride + k) * row.pixel + c, value);
          for (int n = 0; n < N; n++) sum[n] += value[n] * load(tap + n * W);
        }
      for (int n = 0; n < N; n++) sum[n] = cheap(sum[n]);
      store_channels<N>(row.out + x * row.out_pixel + c, sum);
    }
}

inline void depthwise_row_in_loop(const Value* const* rows, int kernel, int stride, int64_t pixel, const float* weights,
                                  const float* bias, int act, Value* out, int64_t out_pixel, int64_t width,
                                  int64_t channels) {
#define FOVEAL_CASE(K, S)         \
  if (kernel == K && stride == S) \
    return depthwise_row_of<K, S>(rows, pixel, weights, bias, act, out, out_pixel, width, channels);
  FOVEAL_CASE(3, 1)
  FOVEAL_CASE(3, 2)
  FOVEAL_CASE(5, 1)
  FOVEAL_CASE(5, 2)
#undef FOVEAL_CASE
  const DepthwiseRow row{rows, 0, pixel, weights, bias, out, out_pixel};
  const int64_t together = channels / (TOGETHER * W) * TOGETHER * W;
  depthwise_row_any<TOGETHER>(row, kernel, stride, act, width, 0, together);
  depthwise_row_any<1>(row, kernel, stride, act, width, together, channels);
}

// As above, for every activation.
inline void depthwise_row(const Value* const* rows, int kernel, int stride, int64_t pixel, const float* weights,
                          const float* bias, int act, Value* out, int64_t out_pixel, int64_t width, int64_t channels) {
  if (!in_place(act))
    return depthwise_row_in_loop(rows, kernel, stride, pixel, weights, bias, act, out, out_pixel, width, channels);
  for (int64_t x = 0; x < width; x += 8) {  // few pixels, so that the first-level cache holds them
    const int64_t count = width - x < 8 ? width - x : 8;
    const Value* shifted[32];
    for (int y = 0; y < kernel; y++) shifted[y] = rows[y] + x * stride * pixel;
    depthwise_row_in_loop(shifted, kernel, stride, pixel, weights, bias, NONE, out + x * out_pixel, out_pixel, count,
                          channels);
    for (int64_t i = 0; i < count; i++) activate(act, out + (x + i) * out_pixel, channels / W);
  }
}
