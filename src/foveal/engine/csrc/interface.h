// Data that the caller hands over. The caller has checked every shape and index (engine/binding.py).
#pragma once
#include <cstdint>

// A map (batch, height, width, channels). `data` is the first channel of the first pixel; around each image are
// `border` rows and columns of zeros, inside the strides. Maps hold values (vector.h), arrays of the caller floats.
// So do maps with `floats`, which a CONV writes and OUTPUT or ENLARGE read.
struct Map {
  void* data;
  int64_t batch, height, width, channels;
  int64_t pixel, row, image;  // values from a pixel, a row, an image to the next
  int64_t border, floats;
};

enum Kind {
  CONV,
  DEPTHWISE,
  CHAIN,
  ATTENTION,
  POOL,
  NORM,
  COMBINE,
  UPSAMPLE,
  INPUT,
  OUTPUT,
  SHUFFLE,
  ENLARGE,
  SOFTMAX,
  TOKEN_CONV,
  SCAN,
  PAD,
  TABLE,
  AVERAGE,
  READ_MAP,
  WRITE_MAP,
  REGROUP,
  MASKS,
  CUT_WINDOWS,
  JOIN_WINDOWS,
  SLICE,
  CONCAT,
  KINDS
};

struct Op {
  int32_t kind, act;
  int32_t in[4];
  int32_t out, residual;  // -1: none
  const void* weight[4];  // packed weights of products hold values, the others floats
  const float* bias[4];
  int64_t p[12];
  double f[4];
  float* work;
};
