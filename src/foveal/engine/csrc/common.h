// What the operations share: addresses in maps, memory of a thread, parts of a range.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include "interface.h"
#include "vector.h"

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Packed weights of a product, and other weights.
const Value* products(const Op& op, int index) { return (const Value*)op.weight[index]; }
const float* floats(const Op& op, int index) { return (const float*)op.weight[index]; }

// Memory of a thread for intermediate rows. It grows to the largest need and is kept.
float* scratch(int64_t floats) {
  struct Memory {
    float* data = nullptr;
    int64_t size = 0;
    ~Memory() { std::free(data); }
  };
  thread_local Memory memory;
  if (memory.size < floats) {
    std::free(memory.data);
    memory.size = 0;  // what follows may fail, and the thread may go on with smaller needs
    memory.data = (float*)std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
    if (!memory.data) throw std::bad_alloc();
    memory.size = floats;
  }
  return memory.data;
}

struct Run {
  const Map* maps;
  int threads;
  int64_t cache;  // values in half of the second-level cache
};

float* planar(const Map& map) { return (float*)map.data; }

template <class T = Value>
T* at(const Map& map, int64_t image, int64_t y, int64_t x) {
  return (T*)map.data + image * map.image + y * map.row + x * map.pixel;
}

bool contiguous(const Map& map) { return map.border == 0; }

template <class T>
void clear(T* p, int64_t count) {
  std::memset(p, 0, count * sizeof(T));
}

void clear_border(const Map& map) {
  const int64_t b = map.border, full = (map.width + 2 * b) * map.pixel;
  if (!b) return;
  for (int64_t i = 0; i < map.batch; i++)
    for (int64_t y = -b; y < map.height + b; y++) {
      Value* row = at(map, i, y, -b);
      if (y < 0 || y >= map.height) {
        clear(row, full);
      } else {
        clear(row, b * map.pixel);
        clear(at(map, i, y, map.width), b * map.pixel);
      }
    }
}

// The part of `total` with number `index` of `parts`.
struct Range {
  int64_t begin, end;
  Range(int64_t total, int64_t parts, int64_t index) : begin(total * index / parts), end(total * (index + 1) / parts) {}
};

// Number of parts of the rows of a map for an operation with little arithmetic.
int64_t row_parts(const Map& out, const Run& run) {
  const int64_t rows = out.batch * out.height;
  return run.threads == 1
             ? 1
             : std::min(rows, std::max<int64_t>(
                                  1, std::min<int64_t>(8 * run.threads, rows * out.width * out.channels / 20000)));
}

}  // namespace
