// 3x3 convolution with stride 1 by Winograd's algorithm (arXiv 1509.09308): a tile of MxM output pixels takes
// (M + 2)^2 products in place of 9 M^2, between a transformation of the input pixels and one of the sums. For M = 2 the
// points are 0, 1 and -1; for M = 4 they are 0, 3/4, -3/4, 3/2 and -3/2, which round half as much as the usual 0, 1,
// -1, 2 and -2. packing.py has the transformation of the weights.
#pragma once
#include "tiles.h"

// Input pixels along one axis to factors.
INLINE void factors(const V (&d)[4], V (&t)[4]) {
  t[0] = d[0] - d[2];
  t[1] = d[1] + d[2];
  t[2] = d[2] - d[1];
  t[3] = d[1] - d[3];
}
INLINE void factors(const V (&d)[6], V (&t)[6]) {
  constexpr float a = 0.75f, b = 1.5f, aa = a * a, bb = b * b;
  const V even_a = d[4] - d[2] * bb, odd_a = d[3] * a - d[1] * (a * bb);
  const V even_b = d[4] - d[2] * aa, odd_b = d[3] * b - d[1] * (b * aa);
  t[0] = d[4] - d[2] * (aa + bb) + d[0] * (aa * bb);
  t[1] = even_a + odd_a;
  t[2] = even_a - odd_a;
  t[3] = even_b + odd_b;
  t[4] = even_b - odd_b;
  t[5] = d[5] - d[3] * (aa + bb) + d[1] * (aa * bb);
}

// Sums along one axis to output pixels.
INLINE void outputs_of(const V (&m)[4], V (&y)[2]) {
  y[0] = m[0] + m[1] + m[2];
  y[1] = m[1] - m[2] - m[3];
}
INLINE void outputs_of(const V (&m)[6], V (&y)[4]) {
  constexpr float a = 0.75f, b = 1.5f;
  const V even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
  y[0] = m[0] + even_a + even_b;
  y[1] = odd_a * a + odd_b * b;
  y[2] = even_a * (a * a) + even_b * (b * b);
  y[3] = odd_a * (a * a * a) + odd_b * (b * b * b) + m[5];
}

// Pixels of the input under a tile: `at` is the top left one.
template <int M>
INLINE void transform_tile(const Value* at, int64_t pixel, int64_t row, int64_t channels, float* out, int64_t plane) {
  constexpr int N = M + 2;
  for (int64_t c = 0; c < channels; c += W, at += W, out += W) {
    V t[N][N];  // column, row
#pragma GCC unroll 6
    for (int x = 0; x < N; x++) {
      V d[N];
#pragma GCC unroll 6
      for (int y = 0; y < N; y++) d[y] = load(at + y * row + x * pixel);
      factors(d, t[x]);
    }
#pragma GCC unroll 6
    for (int y = 0; y < N; y++) {
      V d[N], u[N];
#pragma GCC unroll 6
      for (int x = 0; x < N; x++) d[x] = t[x][y];
      factors(d, u);
#pragma GCC unroll 6
      for (int x = 0; x < N; x++) store(out + (N * y + x) * plane, u[x]);
    }
  }
}

// The MxM output pixels of a tile, of which `rows` x `columns` exist.
template <int M, class T>
INLINE void finish_winograd(const float* sums, int64_t plane, const Finish& finish, int64_t channel, int64_t count,
                            T* out, int64_t out_row, const Value* residual, int64_t residual_row, int rows,
                            int columns) {
  constexpr int N = M + 2;
  for (int64_t c = 0; c < count; c += W) {
    const V bias = load(finish.bias + channel + c);
    V t[N][M], y[M][M];
#pragma GCC unroll 6
    for (int x = 0; x < N; x++) {
      V m[N];
#pragma GCC unroll 6
      for (int i = 0; i < N; i++) m[i] = load(sums + (N * i + x) * plane + c);
      outputs_of(m, t[x]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < M; i++) {
      V m[N];
#pragma GCC unroll 6
      for (int x = 0; x < N; x++) m[x] = t[x][i];
      outputs_of(m, y[i]);
#pragma GCC unroll 4
      for (int j = 0; j < M; j++) y[i][j] += bias;
    }
    if (in_place(finish.act)) {
      activate(finish.act, (float*)y, M * M);
    } else {
      with_act(finish.act, [&](auto act) {
#pragma GCC unroll 16
        for (int i = 0; i < M * M; i++) y[i / M][i % M] = act(y[i / M][i % M]);
      });
    }
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < columns; j++) {
        const int64_t offset = channel + c;
        V value = y[i][j];
        if (residual) value += load(residual + i * residual_row + j * finish.residual_pixel + offset);
        store(out + i * out_row + j * finish.out_pixel + offset, value);
      }
  }
}
