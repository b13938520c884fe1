// Depthwise convolution of one row of a map.
#pragma once
#include <array>
#include <utility>
#include "vector.h"

// Weights (channels, K, K) as [channels / W][K * K][W].
inline void pack_depthwise(const float* weight, int64_t channels, int64_t taps, float* packed) {
  for (int64_t first = 0; first < channels; first += W)
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t j = 0; j < W; j++) *packed++ = first + j < channels ? weight[(first + j) * taps + tap] : 0.0f;
}

template <int K, int S, int X>
__attribute__((noinline)) void depthwise_block(const Cheap& act, const Value* const* rows, int64_t offset,
                                               int64_t pixel, const float* weights, const float* bias, Value* out,
                                               int64_t out_pixel, int64_t channels) {
  for (int64_t c = 0; c < channels; c += W, weights += K * K * W) {
    V sum[X];
#pragma GCC unroll 16
    for (int x = 0; x < X; x++) sum[x] = load(bias + c);
#pragma GCC unroll 7
    for (int y = 0; y < K; y++) {
      const Value* row = rows[y] + offset + c;
      V taps[K];
#pragma GCC unroll 7
      for (int k = 0; k < K; k++) taps[k] = load(weights + (y * K + k) * W);
#pragma GCC unroll 32
      for (int i = 0; i < (X - 1) * S + K; i++) {
        V value = load(row + i * pixel);
#pragma GCC unroll 16
        for (int x = 0; x < X; x++)
          if (i - x * S >= 0 && i - x * S < K) sum[x] += value * taps[i - x * S];
      }
    }
#pragma GCC unroll 16
    for (int x = 0; x < X; x++) sum[x] = act.hard ? HardSwish()(sum[x]) : act.bounds(sum[x]);
#pragma GCC unroll 16
    for (int x = 0; x < X; x++) store(out + x * out_pixel + c, sum[x]);
  }
}

using DepthwiseBlock = void (*)(const Cheap&, const Value* const*, int64_t, int64_t, const float*, const float*, Value*,
                                int64_t, int64_t);
template <int K, int S, int... X>
constexpr std::array<DepthwiseBlock, sizeof...(X)> depthwise_blocks(std::integer_sequence<int, X...>) {
  return {depthwise_block<K, S, X + 1>...};
}

// Row of `width` output pixels, in blocks of nearly equal width. `rows` point to the K input rows, at the leftmost
// pixel under the kernel.
template <int K, int S>
void depthwise_row_of(const Value* const* rows, int64_t pixel, const float* weights, const float* bias, int act,
                      Value* out, int64_t out_pixel, int64_t width, int64_t channels) {
  constexpr auto blocks = depthwise_blocks<K, S>(std::make_integer_sequence<int, 8>());
  const Cheap cheap(act);
  const int64_t count = (width + 7) / 8;
  for (int64_t i = 0; i < count; i++) {
    const int64_t from = i * width / count, to = (i + 1) * width / count;
    blocks[to - from - 1](cheap, rows, from * S * pixel, pixel, weights, bias, out + from * out_pixel, out_pixel,
                          channels);
  }
}

// For the other kernels and strides.
inline void depthwise_row_any(const Value* const* rows, int kernel, int stride, int64_t pixel, const float* weights,
                              const float* bias, int act, Value* out, int64_t out_pixel, int64_t width,
                              int64_t channels) {
  const Cheap cheap(act);
  for (int64_t x = 0; x < width; x++)
    for (int64_t c = 0; c < channels; c += W) {
      V sum = load(bias + c);
      const float* tap = weights + c * kernel * kernel;
      for (int y = 0; y < kernel; y++)
        for (int k = 0; k < kernel; k++, tap += W) sum += load(rows[y] + (x * stride + k) * pixel + c) * load(tap);
      store(out + x * out_pixel + c, cheap(sum));
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
  depthwise_row_any(rows, kernel, stride, pixel, weights, bias, act, out, out_pixel, width, channels);
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
