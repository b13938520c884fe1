// Products of bfloat16 in tile registers (Intel AMX), and the choice between them and vectors. A register holds up to 16
// rows of 64 bytes. One instruction multiplies 16 pixels by 32 input channels with the weights of 16 output channels.
#pragma once
#include <algorithm>
#include "gemm.h"

#if defined(TILES)
constexpr int TILE_ROWS = 16, TILE_PAIRS = 16;
static_assert(W == 16, "a row of a tile is a vector");

// The shape of all tiles: pixels, and pairs of values that are multiplied at once.
struct TileShape {
  int rows = 0, pairs = 0;
};
// What the registers of this thread are configured for; no rows: nothing.
inline TileShape& tile_shape() {
  thread_local TileShape shape;
  return shape;
}

// Registers 0 to 3 hold sums, 4 and 5 pixels, 6 and 7 weights.
#if !defined(FOVEAL_TILES)
inline void configure_tiles(int rows, int pairs) {
  TileShape& now = tile_shape();
  if (now.rows == rows && now.pairs == pairs) return;
  now = {rows, pairs};
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int i = 0; i < 8; i++) {
    config.bytes[i] = (uint16_t)(i == 4 || i == 5 ? 4 * pairs : 4 * W);
    config.rows[i] = (uint8_t)(i < 6 ? rows : pairs);
  }
  asm volatile("ldtilecfg %0" : : "m"(config));
}
inline void release_tiles() {
  if (tile_shape().rows) asm volatile("tilerelease");
  tile_shape() = {};
}
template <int T>
INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int T>
INLINE void tile_load(const void* from, int64_t bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(bytes), "i"(T) : "memory");
}
template <int T>
INLINE void tile_store(void* to, int64_t bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(bytes), "i"(T) : "memory");
}
template <int S, int A, int B>
INLINE void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(S), "i"(A), "i"(B));
}
#else  // plain loops in their place
struct EmulatedTile {
  uint32_t values[TILE_ROWS][W];
};
inline EmulatedTile& emulated(int index) {
  thread_local EmulatedTile registers[8];
  return registers[index];
}
inline void configure_tiles(int rows, int pairs) { tile_shape() = {rows, pairs}; }
inline void release_tiles() { tile_shape() = {}; }
template <int T>
void tile_zero() {
  emulated(T) = {};
}
// Rows of register T, and 32-bit units of each.
template <int T, class F>
void each_tile_row(F&& work) {
  const int rows = T < 6 ? tile_shape().rows : tile_shape().pairs, units = T == 4 || T == 5 ? tile_shape().pairs : W;
  for (int row = 0; row < rows; row++) work(row, emulated(T).values[row], units * sizeof(uint32_t));
}
template <int T>
void tile_load(const void* from, int64_t bytes) {
  each_tile_row<T>([&](int row, uint32_t* values, int64_t size) {
    std::memcpy(values, (const char*)from + row * bytes, size);
  });
}
template <int T>
void tile_store(void* to, int64_t bytes) {
  each_tile_row<T>([&](int row, const uint32_t* values, int64_t size) {
    std::memcpy((char*)to + row * bytes, values, size);
  });
}
template <int S, int A, int B>
void tile_multiply() {
  for (int row = 0; row < tile_shape().rows; row++) {
    V first = splat(0), second = splat(0);  // the sums of the first and of the second values of all pairs
    for (int k = 0; k < tile_shape().pairs; k++) {
      const VU a = repeat(emulated(A).values[row][k]), b = *(const VU*)emulated(B).values[k];
      first += (V)(a << 16) * (V)(b << 16);
      second += (V)(a & 0xffff0000) * (V)(b & 0xffff0000);
    }
    float* sum = (float*)emulated(S).values[row];
    store(sum, load(sum) + (first + second));
  }
}
#endif

// Pairs that are multiplied at once in a product of this depth: the most that divide it. 0: tiles do not pay, or a half
// of a pair is left, behind which may be no number. The order in which a sum is added follows from the depth alone.
inline int64_t tile_pairs(int64_t depth) {
  if (depth % 2) return 0;
  const int64_t pairs = depth / 2;
  int64_t count = (pairs + TILE_PAIRS - 1) / TILE_PAIRS;
  while (pairs % count && pairs / (count + 1) >= TILE_PAIRS / 2) count++;
  return pairs % count ? 0 : pairs / count;
}

// Stores the sums of a tile from row `first` on.
template <int N>
INLINE void finish_rows(const Finish& finish, const float* sums, int64_t first, int64_t rows, int64_t pixel,
                        int64_t channel) {
  int64_t row = first;
  auto some = [&](auto count) INLINE_LAMBDA {
    constexpr int R = count.value;
    for (; row + R <= rows; row += R) {
      V sum[R][N];
#pragma GCC unroll 32
      for (int i = 0; i < R * N; i++) sum[i / N][i % N] = load(sums + row * N * W + i * W);
      finish_tile<R, N>(finish, pixel + row, channel, sum);
    }
  };
  some(std::integral_constant<int, 8>());
  some(std::integral_constant<int, 4>());
  some(std::integral_constant<int, 1>());
}

// Sums of M tiles of pixels, of which the second begins `second` pixels after the first, by N vectors of output channels.
template <int M, int N>
INLINE void multiply_tiles(const BFloat16* a, const Left& left, const BFloat16* b, Next next, int64_t pairs,
                           int64_t second, int64_t part_size) {
  const int64_t stride = left.pixel * sizeof(BFloat16), from_second = second * left.pixel;
  constexpr int64_t B_STRIDE = N * W * sizeof(uint32_t);
  for (int64_t part = 0; part < left.parts; part++) {
    const BFloat16* weights = b + part * part_size * N * W;
    for (int64_t y = 0; y < left.steps_y; y++)
      for (int64_t x = 0; x < left.steps_x; x++) {
        const BFloat16* row = a + y * left.step_y + x * left.step_x;
        for (int64_t k = 0; k < left.depth; k += 2 * pairs, weights += 2 * pairs * N * W) {
          for (const char* end = next.first + next.step; next.first < end; next.first += 64)
            __builtin_prefetch(next.first, 0, 2);
          tile_load<6>(weights, B_STRIDE);
          tile_load<4>(row + k, stride);
          tile_multiply<0, 4, 6>();
          if (N == 2) {
            tile_load<7>(weights + 2 * W, B_STRIDE);
            tile_multiply<1, 4, 7>();
          }
          if (M == 2) {
            tile_load<5>(row + from_second + k, stride);
            tile_multiply<2, 5, 6>();
            if (N == 2) tile_multiply<3, 5, 7>();
          }
        }
      }
  }
}

template <int M, int N>
__attribute__((noinline)) void tiles_of_panel(const BFloat16* a, const Left& left, const BFloat16* b,
                                              Next next, const Finish& finish, int64_t pairs, int64_t pixel,
                                              int64_t second, int64_t rows, int64_t skip, int64_t part_size,
                                              int64_t channel) {
  alignas(64) float sums[M * TILE_ROWS * N * W];
  if (finish.resume) {
    const float* from = (const float*)finish.out.first + pixel * finish.out_pixel + channel;
    const int64_t bytes = finish.out_pixel * sizeof(float);
    tile_load<0>(from, bytes);
    if (N == 2) tile_load<1>(from + W, bytes);
    if (M == 2) tile_load<2>(from + second * finish.out_pixel, bytes);
    if (M * N == 4) tile_load<3>(from + second * finish.out_pixel + W, bytes);
  } else {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  }
  multiply_tiles<M, N>(a + pixel * left.pixel, left, b, next, pairs, second, part_size);
  constexpr int64_t bytes = N * W * sizeof(float);
  tile_store<0>(sums, bytes);
  if (N == 2) tile_store<1>(sums + W, bytes);
  if (M == 2) tile_store<2>(sums + TILE_ROWS * N * W, bytes);
  if (M * N == 4) tile_store<3>(sums + TILE_ROWS * N * W + W, bytes);
  finish_rows<N>(finish, sums, M == 1 ? skip : 0, rows, pixel, channel);
  if (M == 2) finish_rows<N>(finish, sums + TILE_ROWS * N * W, skip, rows, pixel + second, channel);
}

// As gemm_vectors. Tiles have equal heights: the last one begins earlier, and does not store again what is stored.
inline void gemm_tiles(const BFloat16* a, const Left& left, const BFloat16* packed, const Finish& finish,
                       int64_t pixels, int64_t outputs, int64_t first, int64_t last, const Depth& part,
                       int64_t pairs) {
  asm volatile("" : : : "memory");
  const int64_t count = (pixels + TILE_ROWS - 1) / TILE_ROWS, rows = (pixels + count - 1) / count;
  configure_tiles((int)rows, (int)pairs);
  const int64_t depth = left.whole<BFloat16>(), part_size = (part.whole ? part.whole : depth / left.parts);
  const int64_t block = std::max<int64_t>(2, 98304 / (depth * TILE_ROWS) / 2 * 2);  // tiles that stay in the cache
  for (int64_t begin = 0; begin < count; begin += block) {
    const int64_t end = std::min(count, begin + block);
    for (int64_t panel = first; panel < last; panel++) {
      const bool wide = outputs - panel * PANEL >= PANEL;
      const int64_t size = PANEL * left.parts * part_size;
      const BFloat16* b = packed + panel * size + part.first * (wide ? PANEL : W);
      // As in gemm_vectors: a share of the next panel for each two tiles.
      const bool asks = depth >= 64 && count < 64 && panel + 1 < last;
      const int64_t calls = (end - begin + 1) / 2, lines = (pairs * PANEL / 16 + calls - 1) / calls;
      Next next{(const char*)(b + size), asks ? 64 * lines : 0};
      for (int64_t t = begin; t < end; t += 2, next.first += next.step * (depth / 2 / pairs)) {
        const int64_t pixel = std::min(t * rows, pixels - rows), other = std::min((t + 1) * rows, pixels - rows);
        if (t + 1 < end) {
          (wide ? tiles_of_panel<2, 2> : tiles_of_panel<2, 1>)(a, left, b, next, finish, pairs, pixel, other - pixel, rows,
                                                               (t + 1) * rows - other, part_size, panel * PANEL);
        } else {
          (wide ? tiles_of_panel<1, 2> : tiles_of_panel<1, 1>)(a, left, b, next, finish, pairs, pixel, 0, rows,
                                                               t * rows - pixel, part_size, panel * PANEL);
        }
      }
    }
  }
}
// Products of registers alone, to measure how fast they are at most.
constexpr double TILE_OPERATIONS = 4 * 2.0 * TILE_ROWS * 2 * TILE_PAIRS * W;
inline void multiply_registers() {
  configure_tiles(TILE_ROWS, TILE_PAIRS);
  tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>(), tile_multiply<2, 5, 6>(), tile_multiply<3, 5, 7>();
}
#else
inline void release_tiles() {}
constexpr double TILE_OPERATIONS = 0;
inline void multiply_registers() {}
#endif  // TILES

template <class T>
inline void gemm(const T* a, const Left& left, const T* packed, const Finish& finish, int64_t pixels, int64_t outputs,
                 int64_t first, int64_t last, const Depth& part = {}) {
#if defined(TILES)
  if constexpr (std::is_same<T, BFloat16>::value)
    if (const int64_t pairs = tile_pairs(left.depth)) {
      if (pixels > 0) gemm_tiles(a, left, packed, finish, pixels, outputs, first, last, part, pairs);
      return;
    }
#endif
  gemm_vectors(a, left, packed, finish, pixels, outputs, first, last, part);
}
