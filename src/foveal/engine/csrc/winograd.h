// 3x3 convolution with stride 1 by Winograd's F(2x2, 3x3) (arXiv 1509.09308): 16 products for 4 output pixels instead
// of 36, between a transformation of 4x4 input pixels and one of the sums.
#pragma once
#include "gemm.h"

// Pixels of the input under a tile: `at` is the top left one.
INLINE void transform_tile(const Value* at, int64_t pixel, int64_t row, int64_t channels, Value* out, int64_t plane) {
  for (int64_t c = 0; c < channels; c += W, at += W, out += W) {
    V t[4][4];
#pragma GCC unroll 4
    for (int x = 0; x < 4; x++) {
      V d0 = load(at + x * pixel), d1 = load(at + row + x * pixel), d2 = load(at + 2 * row + x * pixel),
        d3 = load(at + 3 * row + x * pixel);
      t[0][x] = d0 - d2;
      t[1][x] = d1 + d2;
      t[2][x] = d2 - d1;
      t[3][x] = d1 - d3;
    }
#pragma GCC unroll 4
    for (int y = 0; y < 4; y++) {
      store(out + (4 * y) * plane, t[y][0] - t[y][2]);
      store(out + (4 * y + 1) * plane, t[y][1] + t[y][2]);
      store(out + (4 * y + 2) * plane, t[y][2] - t[y][1]);
      store(out + (4 * y + 3) * plane, t[y][1] - t[y][3]);
    }
  }
}

// Two vectors of sums (top and bottom pixel) from the four of a column.
INLINE void inverse(V m0, V m1, V m2, V m3, V& top, V& bottom) {
  top = m0 + m1 + m2;
  bottom = m1 - m2 - m3;
}

// The 2x2 output pixels of a tile, of which `rows` x `columns` exist.
INLINE void finish_winograd(const float* sums, int64_t plane, const Finish& finish, int64_t channel, int64_t count,
                            Value* out, int64_t out_row, const Value* residual, int64_t residual_row, int rows,
                            int columns) {
  for (int64_t c = 0; c < count; c += W) {
    V t[2][4], y[2][2];
#pragma GCC unroll 4
    for (int x = 0; x < 4; x++)
      inverse(load(sums + x * plane + c), load(sums + (4 + x) * plane + c), load(sums + (8 + x) * plane + c),
              load(sums + (12 + x) * plane + c), t[0][x], t[1][x]);
    V bias = load(finish.bias + channel + c);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      inverse(t[i][0], t[i][1], t[i][2], t[i][3], y[i][0], y[i][1]);
      y[i][0] += bias, y[i][1] += bias;
    }
    if (in_place(finish.act)) {
      activate(finish.act, (float*)y, 4);
    } else {
      with_act(finish.act, [&](auto act) {
        for (int i = 0; i < 4; i++) y[i / 2][i % 2] = act(y[i / 2][i % 2]);
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
