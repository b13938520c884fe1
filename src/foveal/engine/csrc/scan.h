// The selective scan of Mamba over the tokens of windows; layers/scan/reference.py has the formula.
#pragma once
#include "tokens.h"

namespace {

constexpr int STATES = 4;  // whose values stay in registers

// e^x = 2^k e^r: `whole` is e^x, `rest` is e^r - 1, both to full relative precision; `small` tells where k is 0.
struct Decay {
  V whole, rest;
  VI small;
};

INLINE Decay decay(V x) {
  x = max(splat(-87), x);
  const V magic = splat(12582912.0f);
  const V k = (x * 1.44269504f + magic) - magic;
  const V r = (x - k * 0.693145752f) - k * 1.42860677e-6f;
  V p = splat(1.38825213e-3f);
  p = p * r + 8.36652074e-3f;
  p = p * r + 4.16671999e-2f;
  p = p * r + 1.66665436e-1f;
  p = p * r + 4.99999982e-1f;
  const V rest = p * (r * r) + r;
  VI bits = (__builtin_convertvector(k, VI) + 127) << 23;
  V power;
  std::memcpy(&power, &bits, sizeof power);
  return {power * rest + power, rest, k == splat(0)};
}

// Where a step is small, its rounding error goes into `lost`, which is added to the next input: without this, the
// errors of 65,536 small steps would spoil the result. Larger steps decay fast, and their rounding errors with them.
INLINE V next(V state, const Decay& d, V input, V& lost) {
  input += lost;
  const V result = d.whole * state + input;
  const V error = d.rest * state + (state - result) + input;
  lost = d.small ? error : splat(0);
  return result;
}

// Inputs: the map of u, whose further channels are copied to the result; step sizes (after the softplus); a map that
// holds B and C of each token. p: size of the windows, states, channels of u, first channel of B; C follows B.
// weight: A (states, channels), bias: the factors D of u. A chunk is a vector of channels of a window.
int64_t scan_chunks(const Op& op, const Run& run) {
  const Map& out = run.maps[op.out];
  return out.batch * Windows(out, op.p[0]).count * (padded(out.channels) / W);
}

// `sums`, if there are further states, holds the sum over the states so far for each token.
template <int K>
void scan_states(const Op& op, const Run& run, int64_t image, const Window& window, int64_t channel, int64_t state,
                 V keep, float* sums) {
  const Map &u = run.maps[op.in[0]], &dt = run.maps[op.in[1]], &bc = run.maps[op.in[2]], &out = run.maps[op.out];
  const int64_t states = op.p[1], lanes = padded(op.p[2]);
  const V skip = load(op.bias[0] + channel);
  V a[K], h[K], lost[K];
  for (int k = 0; k < K; k++) {
    a[k] = load(floats(op, 0) + (state + k) * lanes + channel);
    h[k] = lost[k] = splat(0);
  }
  int64_t y = window.top, x = window.left;
  for (int64_t t = 0; t < window.tokens; t++) {
    const V input = load(at(u, image, y, x) + channel), step = load(at(dt, image, y, x) + channel);
    const Value *b = at(bc, image, y, x) + op.p[3] + state, *c = b + states;
    Value* to = at(out, image, y, x) + channel;
    V sum = state ? load(sums + t * W) : skip * input;
    const V gain = step * input;
#pragma GCC unroll 8
    for (int k = 0; k < K; k++) {
      h[k] = next(h[k], decay(step * a[k]), gain * (float)b[k], lost[k]);
      sum += h[k] * (float)c[k];
    }
    if (state + K < states)
      store(sums + t * W, sum);
    else
      store(to, keep != splat(0) ? input : sum);
    if (++x == window.left + window.width) x = window.left, y++;
  }
}

void scan(const Op& op, const Run& run, int64_t chunk) {
  const Map &u = run.maps[op.in[0]], &out = run.maps[op.out];
  const Windows windows(out, op.p[0]);
  const int64_t vectors = padded(out.channels) / W, channel = chunk % vectors * W;
  const int64_t image = chunk / vectors / windows.count;
  const Window window(out, windows, chunk / vectors % windows.count);
  if (channel >= op.p[2]) {
    for (int64_t t = 0; t < window.tokens; t++)
      store(window.token(out, image, t) + channel, load(window.token(u, image, t) + channel));
    return;
  }
  V keep;  // lanes that are no channels of u
  for (int j = 0; j < W; j++) keep[j] = channel + j >= op.p[2];
  const bool one_group = op.p[1] == STATES || op.p[1] == 1;
  float* sums = one_group ? nullptr : scratch(window.tokens * W);
  int64_t n = 0;
  for (; n + STATES <= op.p[1]; n += STATES) scan_states<STATES>(op, run, image, window, channel, n, keep, sums);
  for (; n < op.p[1]; n++) scan_states<1>(op, run, image, window, channel, n, keep, sums);
}

}  // namespace
