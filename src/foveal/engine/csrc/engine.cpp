// The CPU engine: runs a list of operations on maps in channels-last order.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include "common.h"
#include "depthwise.h"
#include "interface.h"
#include "pool.h"
#include "prompts.h"
#include "scan.h"
#include "tiles.h"
#include "tokens.h"
#include "winograd.h"

namespace {

// ---- convolution ----------------------------------------------------------------------------------------------------
// p: kernel height, kernel width, stride, padding at the top and left, groups, side of the tiles of Winograd's
// algorithm or 0, parts of each weight, whether long sums are divided. A second input, of a 1x1 kernel with stride 1 and
// one group, has the factor of each channel of the first.

Left left_of(const Map& in, int64_t kernel_h, int64_t kernel_w, int64_t stride, int64_t depth, int64_t parts = 1) {
  // Pixels without padding; an image of an odd number of channels may have a zero behind each pixel (see `input`).
  const bool dense =
      in.pixel == depth || (in.channels == depth && in.pixel == paired(depth) && in.pixel < padded(depth));
  if (kernel_w > 1 && dense) return {stride * in.pixel, kernel_h, in.row, 1, 0, kernel_w * in.pixel, parts};
  return {stride * in.pixel, kernel_h, in.row, kernel_w, in.pixel, depth, parts};
}

struct ConvParts {
  bool flat;  // all pixels of all images are one row
  int64_t rows, width, row_parts, panel_parts, panels, outputs;
};

// Tiles of output pixels that are transformed together, and the output channels of their sums.
struct TileParts {
  int64_t side, values;  // of a tile: output pixels along a side, factors
  int64_t rows, columns, tiles, block, chunks;
};

TileParts tile_parts(const Op& op, const Run& run) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  TileParts s;
  s.side = op.p[6], s.values = (s.side + 2) * (s.side + 2);
  s.rows = ceil_div(out.height, s.side), s.columns = ceil_div(out.width, s.side);
  const int64_t total = out.batch * s.rows * s.columns;
  // Few tiles stay in the first cache, but the weights are read again for every chunk.
  const int64_t share = in.channels * out.channels * s.values < run.cache / 2 ? 8 : 1;
  s.tiles = std::max<int64_t>(2 * ROWS, run.cache / share / (s.values * in.channels));
  if (s.side == 4) s.tiles = ceil_div(24, ROWS) * ROWS;
  if (run.threads > 1) s.tiles = std::min(s.tiles, ceil_div(total, 4 * run.threads));
  s.chunks = ceil_div(total, s.tiles);
  s.tiles = ceil_div(total, s.chunks);
  s.block = std::max<int64_t>(1, run.cache / share / (s.values * s.tiles) / PANEL) * PANEL;
  return s;
}

template <int M, class T>
void winograd(const Op& op, const Run& run, int64_t chunk) {
  constexpr int N = (M + 2) * (M + 2);
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Map* residual = op.residual < 0 ? nullptr : &run.maps[op.residual];
  const TileParts s = tile_parts(op, run);
  const Range range(out.batch * s.rows * s.columns, s.chunks, chunk);
  const int64_t tiles = range.end - range.begin, channels = in.channels, outputs = padded(out.channels);
  // A plane holds one of the factors of all tiles. One more cache line, so that planes do not share cache sets.
  const int64_t plane = tiles * channels + 16, sums_plane = tiles * std::min(s.block, outputs) + 16;
  float* const values = scratch(N * (plane + sums_plane));
  float* const sums = values + N * plane;
  auto each_tile = [&](auto work) {
    const int64_t row = range.begin / s.columns;
    int64_t image = row / s.rows, y = row % s.rows * M, x = range.begin % s.columns * M;
    for (int64_t t = 0; t < tiles; t++) {
      work(t, image, y, x);
      if ((x += M) >= out.width) x = 0, y += M;
      if (y >= out.height) y = 0, image++;
    }
  };
  each_tile([&](int64_t t, int64_t image, int64_t y, int64_t x) {
    transform_tile<M>(at(in, image, y - 1, x - 1), in.pixel, in.row, channels, values + t * channels, plane);
  });
  const int64_t size = channels * outputs;
  for (int64_t first = 0; first < outputs; first += s.block) {
    const int64_t width = std::min(s.block, outputs - first);
    for (int64_t i = 0; i < N; i++) {
      Finish raw{nullptr, NONE, sums + i * sums_plane - first, width, nullptr, 0};
      raw.partial = true;
      gemm(values + i * plane, Left{channels, 1, 0, 1, 0, channels}, floats(op, 0) + i * size, raw, tiles, outputs,
           first / PANEL, ceil_div(first + width, PANEL));
    }
    const Finish finish{op.bias[0], op.act, (T*)nullptr, out.pixel, nullptr, residual ? residual->pixel : 0};
    each_tile([&](int64_t t, int64_t image, int64_t y, int64_t x) {
      const int rows = (int)std::min<int64_t>(M, out.height - y), columns = (int)std::min<int64_t>(M, out.width - x);
      finish_winograd<M>(sums + t * width, sums_plane, finish, first, width, at<T>(out, image, y, x), out.row,
                         residual ? at(*residual, image, y, x) : nullptr, residual ? residual->row : 0, rows, columns);
    });
  }
}

ConvParts conv_parts(const Op& op, const Run& run) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  ConvParts s;
  s.flat = op.in[1] < 0 && op.p[0] == 1 && op.p[1] == 1 && op.p[2] == 1 && contiguous(in) &&
           (op.residual < 0 || contiguous(run.maps[op.residual]));
  s.rows = s.flat ? 1 : out.batch * out.height;
  s.width = s.flat ? out.batch * out.height * out.width : out.width;
  s.outputs = padded(out.channels / op.p[5]);
  s.panels = panels(s.outputs);
  const int64_t pixels = out.batch * out.height * out.width, depth = op.p[0] * op.p[1] * in.channels / op.p[5];
  const int64_t work = pixels * depth * out.channels / 400000;
  int64_t wanted = run.threads == 1 ? 1 : std::max<int64_t>(1, std::min<int64_t>(work, 8 * run.threads));
  const int64_t divisible = !s.flat ? s.rows : contiguous(out) ? ceil_div(s.width, 2 * ROWS) : out.batch * out.height;
  s.panel_parts = 1;
  if (op.p[5] == 1 && out.channels > pixels) s.panel_parts = std::min(wanted, s.panels);
  s.row_parts = std::min(ceil_div(wanted, s.panel_parts), divisible);
  if (s.row_parts * s.panel_parts < wanted && op.p[5] == 1)
    s.panel_parts = std::min(s.panels, ceil_div(wanted, s.row_parts));
  return s;
}

// `row`: the row of the first pixel, if the pixels are those of several rows of a map with a border, else -1.
template <class T>
void conv_row(const Op& op, const Run& run, const Left& left, const Value* a, T* out, const Value* residual,
              int64_t pixels, int64_t first, int64_t last, int64_t outputs, int64_t row) {
  const Map &in = run.maps[op.in[0]], &to = run.maps[op.out];
  const int64_t groups = op.p[5], group_in = in.channels / groups, group_out = to.channels / groups;
  const int64_t size = op.p[7] * op.p[0] * op.p[1] * paired(group_in) * outputs;
  for (int64_t g = 0; g < groups; g++) {
    Finish finish{op.bias[0] + g * group_out,
                  op.act,
                  out + g * group_out,
                  to.pixel,
                  residual ? residual + g * group_out : nullptr,
                  op.residual < 0 ? 0 : run.maps[op.residual].pixel};
    if (row >= 0) {
      finish.width = to.width, finish.gap = to.row - to.width * to.pixel;
      finish.height = to.height, finish.row = row, finish.image_gap = to.image - to.height * to.row;
    }
    gemm(a + g * group_in, left, products(op, 0) + g * size, finish, pixels, outputs, first, last);
  }
}

// Rows of the result of a 1x1 convolution whose input is multiplied with a factor for each channel. Several rows at a
// time, or a part of a wide row, are multiplied, stay in the cache, and are then read by the product.
template <class T>
void gated_conv(const Op& op, const Run& run, Left left, const Range& rows, const Range& part) {
  const Map &in = run.maps[op.in[0]], &gate = run.maps[op.in[1]], &out = run.maps[op.out];
  const Map* residual = op.residual < 0 ? nullptr : &run.maps[op.residual];
  const int64_t channels = padded(in.channels), outputs = padded(out.channels);
  const int64_t most = std::max<int64_t>(2 * ROWS, run.cache / 2 / channels);  // pixels
  const bool joined = most >= out.width && (!residual || contiguous(*residual));  // whole rows in one product
  const int64_t most_rows = joined ? most / out.width : 1, width = std::min(most, out.width);
  left.pixel = channels;
  Value* const values = (Value*)scratch(std::min(most_rows, rows.end - rows.begin) * width * channels);
  for (int64_t r = rows.begin, count; r < rows.end; r += count) {
    const int64_t image = r / out.height, y = r % out.height;
    count = std::min({most_rows, rows.end - r, out.height - y});
    const Value* factors = at(gate, image, 0, 0);
    for (int64_t x = 0; x < out.width; x += width) {
      const int64_t columns = std::min(width, out.width - x);
      Value* to = values;
      for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < columns; j++, to += channels) {
          const Value* from = at(in, image, y + i, x + j);
          for (int64_t c = 0; c < channels; c += W) store(to + c, load(from + c) * load(factors + c));
        }
      conv_row(op, run, left, values, at<T>(out, image, y, x), residual ? at(*residual, image, y, x) : nullptr,
               count * columns, part.begin, part.end, outputs, count == 1 || contiguous(out) ? -1 : y);
    }
  }
}

template <class T>
void direct_conv(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const ConvParts s = conv_parts(op, run);
  const int64_t stride = op.p[2];
  Left left = left_of(in, op.p[0], op.p[1], stride, in.channels / op.p[5], op.p[7]);
  left.divided = op.p[8];
  const Range part(s.panels, s.panel_parts, chunk % s.panel_parts);
  const int64_t row_part = chunk / s.panel_parts;
  if (op.in[1] >= 0) return gated_conv<T>(op, run, left, Range(s.rows, s.row_parts, row_part), part);
  const Map* residual = op.residual < 0 ? nullptr : &run.maps[op.residual];
  if (s.flat) {
    const bool wrap = !contiguous(out);
    const int64_t unit = wrap ? out.width : 1;  // parts of a result with a border begin with a row
    const Range x(s.width / unit, s.row_parts, row_part);
    const int64_t image = x.begin / out.height, y = x.begin % out.height;
    conv_row(op, run, left, at(in, 0, 0, x.begin * unit), wrap ? at<T>(out, image, y, 0) : at<T>(out, 0, 0, x.begin),
             residual ? at(*residual, 0, 0, x.begin * unit) : nullptr, (x.end - x.begin) * unit, part.begin, part.end,
             s.outputs, wrap ? y : -1);
    return;
  }
  const Range rows(s.rows, s.row_parts, row_part);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    conv_row(op, run, left, at(in, image, y * stride - op.p[3], -op.p[4]), at<T>(out, image, y, 0),
             residual ? at(*residual, image, y, 0) : nullptr, out.width, part.begin, part.end, s.outputs, -1);
  }
}

template <class T>
void conv_to(const Op& op, const Run& run, int64_t chunk) {
  if constexpr (!PARTS_APART)  // the direct sum in tiles is faster
    if (op.p[6]) return op.p[6] == 4 ? winograd<4, T>(op, run, chunk) : winograd<2, T>(op, run, chunk);
  direct_conv<T>(op, run, chunk);
}

void conv(const Op& op, const Run& run, int64_t chunk) {
  run.maps[op.out].floats ? conv_to<float>(op, run, chunk) : conv_to<Value>(op, run, chunk);
}

// ---- depthwise convolution ------------------------------------------------------------------------------------------
// p: kernel, stride, padding at the top and left. The input has a border.

void depthwise(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    const Value* taps[32];
    for (int64_t k = 0; k < op.p[0]; k++) taps[k] = at(in, image, y * op.p[1] - op.p[2] + k, -op.p[3]);
    depthwise_row(taps, op.p[0], op.p[1], in.pixel, floats(op, 0), op.bias[0], op.act, at(out, image, y, 0), out.pixel,
                  out.width, padded(out.channels));
  }
}

// ---- a chain of convolutions, in pieces that stay in the cache ------------------------------------------------------
// p: kernel, stride, padding at the top and left, hidden channels, mode, activation of the expansion, activation of the
// second step, hidden channels of a block (0: by rows), groups of the last convolution, parts of each of its weights,
// parts of each weight of the expansion or dense convolution.
enum ChainMode {
  DEPTHWISE_PROJECT,         // depthwise, 1x1
  EXPAND_DEPTHWISE_PROJECT,  // 1x1, depthwise, 1x1
  DENSE_PROJECT,             // dense, 1x1
  EXPAND_DEPTHWISE           // 1x1, depthwise; the result has the hidden channels
};

bool expands(const Op& op) { return op.p[5] == EXPAND_DEPTHWISE_PROJECT || op.p[5] == EXPAND_DEPTHWISE; }

struct ChainParts {
  int64_t strips, columns;  // of output columns
  int64_t step;             // output rows at a time
  int64_t row_parts, hidden;
  int64_t in_columns, ring_rows;  // of expanded rows
};

ChainParts chain_parts(const Op& op, const Run& run) {
  const Map& out = run.maps[op.out];
  const int64_t kernel = op.p[0], stride = op.p[1];
  ChainParts s;
  s.hidden = padded(op.p[4]);
  if (op.p[8]) {  // by channels
    s.strips = 1;
    s.row_parts = run.threads == 1
                      ? 1
                      : std::max<int64_t>(1, std::min<int64_t>(ceil_div(2 * run.threads, out.batch), out.height / 7));
    return s;
  }
  const bool ring = expands(op);
  auto values = [&](int64_t columns, int64_t step) {
    const int64_t expanded = ring ? ((step - 1) * stride + kernel) * ((columns - 1) * stride + kernel) : 0;
    return (expanded + step * columns) * s.hidden;
  };
  s.strips = 1;
  while (s.strips * 16 < out.width && values(ceil_div(out.width, s.strips), 1) > run.cache) s.strips++;
  s.columns = ceil_div(out.width, s.strips);
  s.step = 1;
  while (s.step < out.height && values(s.columns, s.step + 1) <= run.cache) s.step++;
  const int64_t wanted = run.threads == 1 ? 1 : ceil_div(4 * run.threads, out.batch * s.strips);
  s.row_parts = std::max<int64_t>(1, std::min(wanted, out.height / (ring ? 7 : 2)));
  // As many parts for each thread; a part of its own costs less than a thread that waits.
  if (s.strips * out.batch == 1 && run.threads > 1 && out.height >= 2 * run.threads)
    s.row_parts = std::max<int64_t>(1, s.row_parts / run.threads) * run.threads;
  s.step = std::min(s.step, ceil_div(out.height, s.row_parts));
  s.in_columns = (s.columns - 1) * stride + kernel;
  s.ring_rows = (s.step - 1) * stride + kernel;
  return s;
}

// The chain for small maps with many hidden channels: a block of hidden channels after the other, so that all weights
// are read once and everything else stays in the cache. The sums of the last convolution go on from block to block.
void chain_by_channels(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Map* residual = op.residual < 0 ? nullptr : &run.maps[op.residual];
  const int64_t kernel = op.p[0], stride = op.p[1], top = op.p[2], left_pad = op.p[3], hidden = padded(op.p[4]);
  const int64_t parts = chain_parts(op, run).row_parts, image = chunk / parts;
  const Range rows(out.height, parts, chunk % parts);
  const int64_t count = rows.end - rows.begin, pixels = count * out.width, outputs = padded(out.channels);
  const int64_t in_rows = (count - 1) * stride + kernel, in_width = (out.width - 1) * stride + kernel;
  const int64_t first_y = rows.begin * stride - top;
  const int64_t begin_y = std::max<int64_t>(0, -first_y), end_y = std::min(in_rows, in.height - first_y);
  const int64_t begin_x = left_pad, end_x = std::min(in_width, in.width + left_pad), inside = end_x - begin_x;
  const int64_t block = std::min(op.p[8], hidden);
  Value* const middle = (Value*)scratch((pixels + in_rows * in_width) * block + pixels * outputs);
  Value* const expanded = middle + pixels * block;
  float* const sums = (float*)(expanded + in_rows * in_width * block);
  // One run of pixels where rows of the input follow each other, else row by row.
  const bool joined = contiguous(in) && inside == in.width;
  for (int64_t first = 0; first < hidden; first += block) {
    const int64_t width = std::min(block, hidden - first), panel = first / PANEL,
                  last_panel = ceil_div(first + width, PANEL);
    clear(expanded, in_rows * in_width * width);
    for (int64_t y = begin_y; y < (joined ? begin_y + 1 : end_y); y++) {
      // Panels count from the first hidden channel, so the result's channel 0 lies before the buffer.
      Finish finish{op.bias[0], (int)op.p[6], expanded + (y * in_width + begin_x) * width - first, width, nullptr, 0};
      if (joined) finish.width = inside, finish.gap = (in_width - inside) * width;
      gemm(at(in, image, first_y + y, 0), Left{in.pixel, 1, 0, 1, 0, in.channels, op.p[11]}, products(op, 0), finish,
           joined ? (end_y - begin_y) * inside : inside, hidden, panel, last_panel);
    }
    for (int64_t y = 0; y < count; y++) {
      const Value* taps[32];
      for (int64_t k = 0; k < kernel; k++) taps[k] = expanded + (y * stride + k) * in_width * width;
      depthwise_row(taps, kernel, stride, width, floats(op, 1) + first * kernel * kernel, op.bias[1] + first, op.p[7],
                    middle + y * out.width * width, width, out.width, width);
    }
    const bool last = first + width == hidden;
    const int64_t depth = std::min(width, op.p[4] - first);
    // Sums of several blocks go on in float32.
    const bool direct = contiguous(out) && (!residual || contiguous(*residual)) && (PAIR == 1 || (last && first == 0));
    Finish finish{op.bias[2], op.act, sums, outputs, nullptr, 0};
    if (direct) finish.out = at(out, image, rows.begin, 0), finish.out_pixel = out.pixel;
    if (direct && residual)
      finish.residual = at(*residual, image, rows.begin, 0), finish.residual_pixel = residual->pixel;
    finish.resume = first > 0, finish.partial = !last;
    const int64_t weight_parts = op.p[10];
    gemm(middle, Left{width, 1, 0, 1, 0, depth, weight_parts}, products(op, 2), finish, pixels, outputs, 0,
         panels(outputs), Depth{first, paired(op.p[4])});
    if (!last || direct) continue;
    for (int64_t y = 0; y < count; y++)
      for (int64_t x = 0; x < out.width; x++) {
        const float* from = sums + (y * out.width + x) * outputs;
        const Value* add = residual ? at(*residual, image, rows.begin + y, x) : nullptr;
        Value* to = at(out, image, rows.begin + y, x);
        for (int64_t c = 0; c < outputs; c += W) store(to + c, add ? load(from + c) + load(add + c) : load(from + c));
      }
  }
}

void chain(const Op& op, const Run& run, int64_t chunk) {
  if (op.p[8]) return chain_by_channels(op, run, chunk);
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Map* residual = op.residual < 0 ? nullptr : &run.maps[op.residual];
  const ChainParts s = chain_parts(op, run);
  const int64_t kernel = op.p[0], stride = op.p[1], top = op.p[2], left_pad = op.p[3], hidden = s.hidden;
  const int64_t strip = chunk % s.strips, image = chunk / s.strips / s.row_parts;
  const Range rows(out.height, s.row_parts, chunk / s.strips % s.row_parts);
  const Range columns(out.width, s.strips, strip);
  const int64_t width = columns.end - columns.begin, in_width = (width - 1) * stride + kernel;
  const int64_t hidden_panels = panels(hidden);
  const bool ring = expands(op), projects = op.p[5] != EXPAND_DEPTHWISE;
  const int64_t ring_pixels = ring ? s.ring_rows * in_width : 0;
  Value* const expanded = (Value*)scratch((ring_pixels + (projects ? s.step * width : 0)) * hidden);
  Value* const middle = expanded + ring_pixels * hidden;
  const int64_t first_x = columns.begin * stride - left_pad;  // of the input, may be negative
  const int64_t inside_begin = std::max<int64_t>(0, -first_x), inside_end = std::min(in_width, in.width - first_x);
  const int64_t groups = op.p[9], group_in = op.p[4] / groups, group_out = out.channels / groups;
  const Left pointwise{in.pixel, 1, 0, 1, 0, in.channels, op.p[11]}, project{hidden, 1, 0, 1, 0, group_in, op.p[10]};
  int64_t ready = rows.begin * stride - top;  // first input row that is not expanded yet
  for (int64_t y = rows.begin; y < rows.end; y += s.step) {
    const int64_t count = std::min(s.step, rows.end - y);
    if (ring) {
      const int64_t last = (y + count - 1) * stride - top + kernel;
      for (; ready < last; ready++) {
        Value* row = expanded + ((ready + kernel) % s.ring_rows) * in_width * hidden;
        if (ready < 0 || ready >= in.height || inside_end <= inside_begin) {
          clear(row, in_width * hidden);
          continue;
        }
        clear(row, inside_begin * hidden);
        clear(row + inside_end * hidden, (in_width - inside_end) * hidden);
        Finish finish{op.bias[0], (int)op.p[6], row + inside_begin * hidden, hidden, nullptr, 0};
        gemm(at(in, image, ready, first_x + inside_begin), pointwise, products(op, 0), finish,
             inside_end - inside_begin, hidden, 0, hidden_panels);
      }
    }
    for (int64_t r = 0; r < count; r++) {
      const int64_t from = (y + r) * stride - top;
      if (op.p[5] == DENSE_PROJECT) {
        Finish finish{op.bias[1], (int)op.p[7], middle + r * width * hidden, hidden, nullptr, 0};
        gemm(at(in, image, from, first_x), left_of(in, kernel, kernel, stride, in.channels, op.p[11]), products(op, 1), finish,
             width, hidden, 0, hidden_panels);
        continue;
      }
      const Value* taps[32];
      for (int64_t k = 0; k < kernel; k++)
        taps[k] = ring ? expanded + ((from + k + kernel) % s.ring_rows) * in_width * hidden
                       : at(in, image, from + k, first_x);
      depthwise_row(taps, kernel, stride, ring ? hidden : in.pixel, floats(op, 1), op.bias[1], op.p[7],
                    projects ? middle + r * width * hidden : at(out, image, y + r, columns.begin),
                    projects ? hidden : out.pixel, width, hidden);
    }
    if (!projects) continue;
    // Rows of the output lie apart unless the strip is the whole width.
    const bool joined = s.strips == 1 && contiguous(out) && (!residual || contiguous(*residual));
    for (int64_t r = 0; r < (joined ? 1 : count); r++)
      for (int64_t g = 0; g < groups; g++) {
        const int64_t channel = g * group_out, outputs = padded(group_out);
        Finish finish{
            op.bias[2] + channel, op.act, at(out, image, y + r, columns.begin) + channel, out.pixel, nullptr, 0};
        if (residual)
          finish.residual = at(*residual, image, y + r, columns.begin) + channel,
          finish.residual_pixel = residual->pixel;
        gemm(middle + r * width * hidden + g * group_in, project, products(op, 2) + g * project.whole() * outputs,
             finish, joined ? count * width : width, outputs, 0, panels(outputs));
      }
  }
}

// ---- multi-scale ReLU linear attention ------------------------------------------------------------------------------
// Inputs: a map for each branch, with q, k, v of head 0, of head 1, ... p: branches, head_dim, heads of a branch, rows
// of a part. f: epsilon. work: for each image, head and part the sums (head_dim + 1, vectors of head_dim).

struct Heads {
  int64_t dim, lanes, size, total, parts;
};

Heads heads_of(const Op& op, const Run& run) {
  const Map& in = run.maps[op.in[0]];
  const int64_t lanes = padded(op.p[1]);
  return {op.p[1], lanes, (op.p[1] + 1) * lanes, op.p[0] * op.p[2], ceil_div(in.height, op.p[3])};
}

// Pixels of an attention that are computed together: their values, as floats, stay in the first-level cache.
constexpr int64_t TOKENS = 64;

// The first `count` values of some pixels as floats, which the inner loops then read many times. The kernel is relu.
INLINE void to_floats(const Value* from, int64_t pixel, int64_t pixels, int64_t count, bool kernel, float* to) {
  for (int64_t i = 0; i < pixels; i++, from += pixel)
    for (int64_t c = 0; c < count; c += W, to += W) store(to, kernel ? relu(load(from + c)) : load(from + c));
}

// keys, values: (pixels, lanes), keys after the kernel.
template <int N>
void add_keys(const float* keys, const float* values, int64_t count, int64_t dim, float* sums) {
  constexpr int R = 12 / N;
  constexpr int64_t lanes = N * W;
  for (int64_t first = 0; first < dim; first += R) {
    const int64_t rows = std::min<int64_t>(R, dim - first);
    V sum[R][N];
    const float* key[R];
    for (int r = 0; r < R; r++) {
      const int64_t row = first + std::min<int64_t>(r, rows - 1);
      key[r] = keys + row;
      for (int n = 0; n < N; n++) sum[r][n] = load(sums + row * lanes + n * W);
    }
    for (int64_t i = 0; i < count; i++) {
      V value[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) value[n] = load(values + i * lanes + n * W);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        const V weight = splat(key[r][i * lanes]);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sum[r][n] += weight * value[n];
      }
    }
    for (int r = 0; r < rows; r++)
      for (int n = 0; n < N; n++) store(sums + (first + r) * lanes + n * W, sum[r][n]);
  }
  for (int n = 0; n < N; n++) {
    V sum = load(sums + dim * lanes + n * W);
    for (int64_t i = 0; i < count; i++) sum += load(keys + i * lanes + n * W);
    store(sums + dim * lanes + n * W, sum);
  }
}

// queries: (pixels, lanes), after the kernel.
template <int N>
void answer_queries(const float* queries, int64_t count, int64_t dim, const float* sums, float eps, Value* out,
                    int64_t out_pixel) {
  constexpr int R = N <= 2 ? 4 : 2;
  constexpr int64_t lanes = N * W;
  for (int64_t i = 0; i < count; i += R) {
    V sum[R][N];
    float total[R];
    const float* query[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      query[r] = queries + std::min(i + r, count - 1) * lanes;
      total[r] = eps;
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) sum[r][n] = splat(0);
    }
    for (int64_t d = 0; d < dim; d++) {
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const V weight = splat(query[r][d]);
        total[r] += query[r][d] * sums[dim * lanes + d];
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sum[r][n] += weight * load(sums + d * lanes + n * W);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      if (i + r >= count) break;
#pragma GCC unroll 8
      for (int n = 0; n < N; n++)
        store(out + (i + r) * out_pixel + n * W,
              PAIR == 2 ? sum[r][n] * splat(1.0f / total[r]) : sum[r][n] / splat(total[r]));
    }
  }
}

template <class F>
void with_lanes(int64_t lanes, F&& f) {
  switch (lanes / W) {
    case 1:
      f(std::integral_constant<int, 1>());
      break;
    case 2:
      f(std::integral_constant<int, 2>());
      break;
    case 4:
      f(std::integral_constant<int, 4>());
      break;
    case 8:
      f(std::integral_constant<int, 8>());
      break;
    default:
      f(std::integral_constant<int, 3>());
      break;
  }
}

void attention(const Op& op, const Run& run, int phase, int64_t chunk) {
  const Heads h = heads_of(op, run);
  const Map &first = run.maps[op.in[0]], &out = run.maps[op.out];
  const int64_t per_image = h.total * h.size;
  if (phase == 1) {  // the sums of the parts, in their order
    float* sums = op.work + chunk / h.total * h.parts * per_image + chunk % h.total * h.size;
    for (int64_t part = 1; part < h.parts; part++)
      for (int64_t i = 0; i < h.size; i += W) store(sums + i, load(sums + i) + load(sums + part * per_image + i));
    return;
  }
  const int64_t image = chunk / h.parts, part = chunk % h.parts;
  const int64_t begin = part * op.p[3], end = std::min(first.height, begin + op.p[3]);
  float* const first_values = scratch(2 * TOKENS * h.lanes);
  float* const second_values = first_values + TOKENS * h.lanes;
  for (int64_t head = 0; head < h.total; head++) {
    const Map& in = run.maps[op.in[head / op.p[2]]];
    const int64_t channel = head % op.p[2] * 3 * h.dim;
    float* sums = op.work + image * h.parts * per_image + head * h.size;
    if (phase == 0) clear(sums += part * per_image, h.size);
    with_lanes(h.lanes, [&](auto n) {
      int64_t held = 0;  // pixels whose keys and values wait to be added: those of several short rows
      for (int64_t y = begin; y < end; y++)
        for (int64_t x = 0, count; x < in.width; x += count) {
          const Value* from = at(in, image, y, x) + channel;
          count = std::min(TOKENS - held, in.width - x);
          if (phase == 2) {
            to_floats(from, in.pixel, count, h.lanes, true, first_values);
            answer_queries<n.value>(first_values, count, h.dim, sums, (float)op.f[0],
                                    at(out, image, y, x) + head * h.dim, out.pixel);
            continue;
          }
          to_floats(from + h.dim, in.pixel, count, h.lanes, true, first_values + held * h.lanes);
          to_floats(from + 2 * h.dim, in.pixel, count, h.lanes, false, second_values + held * h.lanes);
          held += count;
          if (held < TOKENS && (y + 1 < end || x + count < in.width)) continue;
          add_keys<n.value>(first_values, second_values, held, h.dim, sums);
          held = 0;
        }
    });
  }
}

// ---- small operations -----------------------------------------------------------------------------------------------

// Sums of N vectors of channels over a row of pixels.
template <int N>
void sum_row(const Value* row, int64_t pixel, int64_t pixels, float* to) {
  V sum[N];
  for (int n = 0; n < N; n++) sum[n] = splat(0);
  for (int64_t x = 0; x < pixels; x++, row += pixel)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) sum[n] += load(row + n * W);
  for (int n = 0; n < N; n++) store(to + n * W, sum[n]);
}

// Mean over all pixels. work: the sums of the rows. In the second phase, a chunk is one vector of channels of one image.
void pool(const Op& op, const Run& run, int phase, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const int64_t channels = padded(in.channels);
  if (phase == 0) {
    const Range rows(in.batch * in.height, row_parts(in, run), chunk);
    for (int64_t r = rows.begin; r < rows.end; r++) {
      const Value* row = at(in, r / in.height, r % in.height, 0);
      float* to = op.work + r * channels;
      int64_t c = 0;
      for (; c + 4 * W <= channels; c += 4 * W) sum_row<4>(row + c, in.pixel, in.width, to + c);
      for (; c < channels; c += W) sum_row<1>(row + c, in.pixel, in.width, to + c);
    }
    return;
  }
  const int64_t image = chunk / (channels / W), channel = chunk % (channels / W) * W;
  V total = splat(0);
  for (int64_t y = 0; y < in.height; y++) total += load(op.work + (image * in.height + y) * channels + channel);
  store(at(out, image, 0, 0) + channel, total / (float)(in.height * in.width));
}

// Layer norm over the channels of a pixel. f: epsilon.
void norm(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t channels = in.channels, whole = channels / W * W;
  for (int64_t r = rows.begin; r < rows.end; r++)
    for (int64_t x = 0; x < out.width; x++) {
      const Value* a = at(in, r / out.height, r % out.height, x);
      Value* to = at(out, r / out.height, r % out.height, x);
      V sums = splat(0), squares = splat(0);
      for (int64_t c = 0; c < whole; c += W) sums += load(a + c);
      double sum = total(sums);
      for (int64_t c = whole; c < channels; c++) sum += a[c];
      const float mean = (float)(sum / channels);
      for (int64_t c = 0; c < whole; c += W) {
        V d = load(a + c) - mean;
        squares += d * d;
      }
      double square = total(squares);
      for (int64_t c = whole; c < channels; c++) square += (a[c] - mean) * (a[c] - mean);
      const float scale = (float)(1 / std::sqrt(square / channels + op.f[0]));
      for (int64_t c = 0; c < padded(channels); c += W)
        store(to + c, (load(a + c) - mean) * scale * load(floats(op, 0) + c) + load(op.bias[0] + c));
      activate(op.act, to, padded(channels) / W);
    }
}

// p: 0 sum, 1 product, 2 the first input alone; the second input may have one pixel for the whole image.
// f: factor and addend of the first input.
void combine(const Op& op, const Run& run, int64_t chunk) {
  const Map &a = run.maps[op.in[0]], &out = run.maps[op.out];
  const Map& b = op.in[1] < 0 ? a : run.maps[op.in[1]];
  const bool one = b.height == 1 && b.width == 1 && (out.height > 1 || out.width > 1);
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const float factor = (float)op.f[0], addend = (float)op.f[1];
  const int64_t channels = padded(out.channels);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    for (int64_t x = 0; x < out.width; x++) {
      const Value *from = at(a, image, y, x), *other = one ? at(b, image, 0, 0) : at(b, image, y, x);
      Value* to = at(out, image, y, x);
      for (int64_t c = 0; c < channels; c += W) {
        V value = load(from + c) * factor + addend;
        if (op.p[0] == 0) value += load(other + c);
        if (op.p[0] == 1) value *= load(other + c);
        store(to + c, value);
      }
      activate(op.act, to, channels / W);
    }
  }
}

// ---- resampling -----------------------------------------------------------------------------------------------------

// p: factor. weight: (factor, 5) taps. Bicubic upsampling; the residual is added.
void upsample(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Map* residual = op.residual < 0 ? nullptr : &run.maps[op.residual];
  const int64_t factor = op.p[0], channels = padded(in.channels);
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  float* line = scratch((in.width + 4) * channels);
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    const float* taps = floats(op, 0) + y % factor * 5;
    const Value* from[5];
    for (int64_t k = 0; k < 5; k++)
      from[k] = at(in, image, std::min(std::max<int64_t>(y / factor + k - 2, 0), in.height - 1), 0);
    for (int64_t x = -2; x < in.width + 2; x++) {
      const int64_t offset = std::min(std::max<int64_t>(x, 0), in.width - 1) * in.pixel;
      for (int64_t c = 0; c < channels; c += W) {
        V sum = splat(0);
        for (int k = 0; k < 5; k++) sum += load(from[k] + offset + c) * taps[k];
        store(line + (x + 2) * channels + c, sum);
      }
    }
    for (int64_t x = 0; x < out.width; x++) {
      const float *tap = floats(op, 0) + x % factor * 5, *start = line + x / factor * channels;
      Value* to = at(out, image, y, x);
      const Value* add = residual ? at(*residual, image, y, x) : nullptr;
      for (int64_t c = 0; c < channels; c += W) {
        V sum = splat(0);
        for (int k = 0; k < 5; k++) sum += load(start + k * channels + c) * tap[k];
        store(to + c, add ? sum + load(add + c) : sum);
      }
    }
  }
}

// Planar images (batch, channels, height, width) to a map, times `weight` plus `bias` per channel. Pixels beyond the
// image repeat its last row and column. The map may have as many values per pixel as it has channels, up to a pair.
void input(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t plane = in.height * in.width;
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = std::min(r % out.height, in.height - 1);
    Value* to = at(out, image, r % out.height, 0);
    if (in.channels == 3 && out.pixel == paired(3) && in.width == out.width) {
      const float *red = planar(in) + image * 3 * plane + y * in.width, *green = red + plane, *blue = green + plane;
      const float *scale = floats(op, 0), *shift = op.bias[0];
      int64_t x = 0;
      if constexpr (PAIR == 2)
        for (; x + W <= out.width; x += W) {
          const VU first = rounded(load(red + x) * scale[0] + shift[0]);
          const VU second = rounded(load(green + x) * scale[1] + shift[1]);
          const VU third = rounded(load(blue + x) * scale[2] + shift[2]);
          const VU pair = first | second << 16;
          for (int j = 0; j < W; j++, to += 4) {
            const uint64_t pixel = pair[j] | (uint64_t)third[j] << 32;
            std::memcpy(to, &pixel, sizeof pixel);
          }
        }
      for (; x < out.width; x++, to += out.pixel) {
        to[0] = red[x] * scale[0] + shift[0];
        to[1] = green[x] * scale[1] + shift[1];
        to[2] = blue[x] * scale[2] + shift[2];
        if (PAIR == 2) to[3] = 0;
      }
      continue;
    }
    int64_t done = 0;
    for (; done + W <= in.channels && in.width == out.width; done += W) {  // whole vectors of channels
      const float* from = planar(in) + image * in.channels * plane + done * plane + y * in.width;
      const V scale = load(floats(op, 0) + done), shift = load(op.bias[0] + done);
      int64_t x = 0;
      for (; x + W <= in.width; x += W) {
        V pixels[W];
        for (int j = 0; j < W; j++) pixels[j] = load(from + j * plane + x);
        transpose(pixels);
        for (int j = 0; j < W; j++) store(to + (x + j) * out.pixel + done, pixels[j] * scale + shift);
      }
      for (; x < in.width; x++) {
        float values[W];
        for (int j = 0; j < W; j++) values[j] = from[j * plane + x];
        store(to + x * out.pixel + done, load(values) * scale + shift);
      }
    }
    for (int64_t c = done; c < out.pixel; c++) {
      if (c >= in.channels) {
        for (int64_t x = 0; x < out.width; x++) to[x * out.pixel + c] = 0;
        continue;
      }
      const float* from = planar(in) + image * in.channels * plane + c * plane + y * in.width;
      const float scale = floats(op, 0)[c], shift = op.bias[0][c];
      const int64_t inside = std::min(in.width, out.width);
      for (int64_t x = 0; x < inside; x++) to[x * out.pixel + c] = from[x] * scale + shift;
      for (int64_t x = inside; x < out.width; x++) to[x * out.pixel + c] = from[in.width - 1] * scale + shift;
    }
  }
}

// A map to planar images; the map may be larger, its last rows and columns are left out.
template <class T>
void output(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t plane = out.height * out.width;
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    const T* from = at<T>(in, image, y, 0);
    float* to = planar(out) + image * out.channels * plane + y * out.width;
    for (int64_t begin = 0; begin < out.width; begin += 64) {  // pixels that stay in the first-level cache
      const int64_t end = std::min(begin + 64, out.width), whole = begin + (end - begin) / W * W;
      int64_t c = 0;
      for (; c + W <= out.channels; c += W) {
        for (int64_t x = begin; x < whole; x += W) {
          V values[W];
          for (int j = 0; j < W; j++) values[j] = load(from + (x + j) * in.pixel + c);
          transpose(values);
          for (int j = 0; j < W; j++) store(to + (c + j) * plane + x, values[j]);
        }
        for (int64_t j = c; j < c + W; j++)
          for (int64_t x = whole; x < end; x++) to[j * plane + x] = from[x * in.pixel + j];
      }
      for (; c < out.channels; c++)
        for (int64_t x = begin; x < end; x++) to[c * plane + x] = from[x * in.pixel + c];
    }
  }
}

// Pixel shuffle of a map whose channels are ordered (row, column, channel), plus the residual. p: factor, channels.
void shuffle(const Op& op, const Run& run, int64_t chunk) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  const Map* residual = op.residual < 0 ? nullptr : &run.maps[op.residual];
  const Range rows(out.batch * out.height, row_parts(out, run), chunk);
  const int64_t factor = op.p[0], channels = out.channels;
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t image = r / out.height, y = r % out.height;
    for (int64_t x = 0; x < out.width; x++) {
      const Value* from = at(in, image, y / factor, x / factor) + (y % factor * factor + x % factor) * channels;
      Value* to = at(out, image, y, x);
      const Value* add = residual ? at(*residual, image, y, x) : nullptr;
      for (int64_t c = 0; c < channels; c += W) store(to + c, add ? load(from + c) + load(add + c) : load(from + c));
    }
  }
}

// The enlarged image, planar: pixel shuffle of the first input, plus the bicubic enlargement of the second, which is
// planar. p: factor. weight: (factor, 5) taps.
template <class T>
void enlarge(const Op& op, const Run& run, int64_t chunk) {
  const Map &detail = run.maps[op.in[0]], &image = run.maps[op.in[1]], &out = run.maps[op.out];
  const int64_t factor = op.p[0], width = image.width, height = image.height, plane = height * width;
  const Range rows(out.batch * height, row_parts(detail, run), chunk);
  float* line = scratch(width + 4 + 64) + 2;
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t b = r / height, y = r % height;
    for (int64_t c = 0; c < image.channels; c++)
      for (int64_t dy = 0; dy < factor; dy++) {
        const float* taps = floats(op, 0) + dy * 5;
        const float* from[5];
        for (int64_t k = 0; k < 5; k++)
          from[k] = planar(image) + (b * image.channels + c) * plane +
                    std::min(std::max<int64_t>(y + k - 2, 0), height - 1) * width;
        for (int64_t x = 0; x < width; x++)
          line[x] = from[0][x] * taps[0] + from[1][x] * taps[1] + from[2][x] * taps[2] + from[3][x] * taps[3] +
                    from[4][x] * taps[4];
        line[-2] = line[-1] = line[0];
        line[width] = line[width + 1] = line[width - 1];
        float* to = planar(out) + ((b * image.channels + c) * out.height + y * factor + dy) * out.width;
        const T* add = at<T>(detail, b, y, 0) + (c * factor + dy) * factor;
        for (int64_t dx = 0; dx < factor; dx++) {
          const float* tap = floats(op, 0) + dx * 5;
          for (int64_t x = 0; x < width; x++)
            to[x * factor + dx] = line[x - 2] * tap[0] + line[x - 1] * tap[1] + line[x] * tap[2] +
                                  line[x + 1] * tap[3] + line[x + 2] * tap[4] + add[x * detail.pixel + dx];
        }
      }
  }
}

// ---- the list of operations -----------------------------------------------------------------------------------------

// Number of chunks of a phase; 0: the operation has no such phase.
int64_t chunks(const Op& op, const Run& run, int phase) {
  const Map &in = run.maps[op.in[0]], &out = run.maps[op.out];
  if (op.kind == ATTENTION) {
    const Heads h = heads_of(op, run);
    return phase == 0 || phase == 2 ? in.batch * h.parts : phase == 1 ? in.batch * h.total : 0;
  }
  if (op.kind == POOL && phase < 2) return phase ? in.batch * padded(in.channels) / W : row_parts(in, run);
  if (op.kind == READ_MAP && phase < 2) return phase ? out.batch : out.batch * Reading(op, run).parts;
  if (phase) return 0;
  switch (op.kind) {
    case CONV: {
      if (op.p[6]) return tile_parts(op, run).chunks;
      const ConvParts s = conv_parts(op, run);
      return s.row_parts * s.panel_parts;
    }
    case CHAIN: {
      const ChainParts s = chain_parts(op, run);
      return out.batch * s.strips * s.row_parts;
    }
    case ENLARGE:
      return row_parts(in, run);
    case MASKS:
      return row_parts(in, run);
    case SOFTMAX:
      return softmax_chunks(op, run);
    case TOKEN_CONV:
      return token_conv_chunks(op, run);
    case SCAN:
      return scan_chunks(op, run);
    default:
      return row_parts(out, run);
  }
}

void run_chunk(const Op& op, const Run& run, int phase, int64_t chunk) {
  switch (op.kind) {
    case CONV:
      return conv(op, run, chunk);
    case DEPTHWISE:
      return depthwise(op, run, chunk);
    case CHAIN:
      return chain(op, run, chunk);
    case ATTENTION:
      return attention(op, run, phase, chunk);
    case POOL:
      return pool(op, run, phase, chunk);
    case NORM:
      return norm(op, run, chunk);
    case COMBINE:
      return combine(op, run, chunk);
    case UPSAMPLE:
      return upsample(op, run, chunk);
    case INPUT:
      return input(op, run, chunk);
    case OUTPUT:
      return run.maps[op.in[0]].floats ? output<float>(op, run, chunk) : output<Value>(op, run, chunk);
    case SHUFFLE:
      return shuffle(op, run, chunk);
    case ENLARGE:
      return run.maps[op.in[0]].floats ? enlarge<float>(op, run, chunk) : enlarge<Value>(op, run, chunk);
    case SOFTMAX:
      return softmax_attention(op, run, chunk);
    case TOKEN_CONV:
      return token_conv(op, run, chunk);
    case SCAN:
      return scan(op, run, chunk);
    case PAD:
      return pad(op, run, chunk);
    case TABLE:
      return add_table(op, run, chunk);
    case AVERAGE:
      return average(op, run, chunk);
    case READ_MAP:
      return phase ? read_sums(op, run, chunk) : read_part(op, run, chunk);
    case WRITE_MAP:
      return write_map(op, run, chunk);
    case REGROUP:
      return regroup(op, run, chunk);
    case MASKS:
      return masks(op, run, chunk);
    case CUT_WINDOWS:
      return cut_windows(op, run, chunk);
    case JOIN_WINDOWS:
      return join_windows(op, run, chunk);
    case SLICE:
      return slice(op, run, chunk);
    case CONCAT:
      return concat(op, run, chunk);
  }
}

struct Job {
  const Op* op;
  const Run* run;
  int phase;
  std::atomic<bool>* failed;
};

void run_job(void* context, int64_t chunk) {
  const Job& job = *(const Job*)context;
  try {
    run_chunk(*job.op, *job.run, job.phase, chunk);
  } catch (...) {
    *job.failed = true;
  }
  release_tiles();  // another library may use them on this thread
}

std::mutex pool_mutex;
Pool* pool_of_process = nullptr;
pid_t pool_pid = 0;

int64_t cache_values() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes / 2 / (int64_t)sizeof(Value);
#endif
  return 262144 / sizeof(Value);
}

}  // namespace

// The rest is hidden (-fvisibility=hidden): a process may load libraries for several instruction sets, whose templates
// have the same names.
#pragma GCC visibility push(default)
extern "C" {

int64_t foveal_width() { return W; }
int64_t foveal_panel() { return PANEL; }
int64_t foveal_cache() { return 2 * cache_values() * (int64_t)sizeof(Value); }
int64_t foveal_value_size() { return sizeof(Value); }
int foveal_parts_apart() { return PARTS_APART; }

// Floating-point operations per second of one core on values in registers: the most that any operation can reach.
double foveal_peak() {
  constexpr int64_t N = 12, STEPS = 100000;  // independent sums: more than the latency of a multiply-add needs
  V sum[N], a = splat(1.000001f), b = splat(1e-9f);
  for (int i = 0; i < N; i++) sum[i] = splat((float)i);
  constexpr bool TILED = TILE_OPERATIONS > 0;
  double best = 0;
  for (int trial = 0; trial < 20; trial++) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t k = 0; k < STEPS; k++) {
      if (TILED) {
        multiply_registers();
        continue;
      }
#pragma GCC unroll 12
      for (int i = 0; i < N; i++) sum[i] = sum[i] * a + b;
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, STEPS * (TILED ? TILE_OPERATIONS : 2.0 * N * W) / elapsed.count());
  }
  release_tiles();
  volatile float keep = sum[0][0];
  for (int i = 1; i < N; i++) keep = keep + sum[i][0];
  return best;
}

void foveal_pack(const float* weight, int64_t outputs, int64_t taps, int64_t depth, Value* packed) {
  pack(weight, outputs, taps, depth, packed);
}
void foveal_pack_floats(const float* weight, int64_t outputs, int64_t taps, int64_t depth, float* packed) {
  pack(weight, outputs, taps, depth, packed);
}
void foveal_pack_depthwise(const float* weight, int64_t channels, int64_t taps, float* packed) {
  pack_depthwise(weight, channels, taps, packed);
}

// Runs all operations. `seconds`, if not null, receives the time of each. Returns 0, or 1 where memory is missing.
int foveal_run(const Op* ops, int64_t count, const Map* maps, int threads, double* seconds) {
  static const int64_t cache = cache_values();
  std::unique_lock<std::mutex> lock(pool_mutex, std::defer_lock);
  // Another thread of the caller has the pool: this one then works alone. The results are the same.
  if (threads > 1 && !lock.try_lock()) threads = 1;
  if (threads > 1 && pool_pid != getpid()) {  // the first run, or the first in a forked process, where no thread lives
    pool_of_process = new Pool;
    pool_pid = getpid();
  }
  Pool alone, &pool = threads > 1 ? *pool_of_process : alone;
  const Run run{maps, threads, cache};
  std::atomic<bool> failed{false};
  if (threads > 1) pool.begin(threads - 1);
  for (int64_t i = 0; i < count && !failed; i++) {
    const auto start = std::chrono::steady_clock::now();
    if (ops[i].kind != OUTPUT && ops[i].kind != ENLARGE && ops[i].kind != MASKS) clear_border(maps[ops[i].out]);
    for (int phase = 0; !failed; phase++) {
      const int64_t total = chunks(ops[i], run, phase);
      if (!total) break;
      Job job{&ops[i], &run, phase, &failed};
      pool.run(total, run_job, &job);
    }
    if (seconds) seconds[i] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return failed;
}
}
