// Vectors of W floats, in the compiler's own vector extension: the same source for every instruction set.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// FOVEAL_WIDTH can be set to test the code of a wider instruction set on a narrower machine.
#if defined(FOVEAL_WIDTH)
constexpr int W = FOVEAL_WIDTH;
#elif defined(__AVX512F__)
#define VECTORS_512
constexpr int W = 16;
#elif defined(__AVX__)
#define VECTORS_256
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float V __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(W * 4), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

INLINE V load(const float* p) { return *(const V*)p; }
INLINE void store(float* p, V v) { *(V*)p = v; }
INLINE V splat(float x) {
#if defined(VECTORS_512)
  return (V)_mm512_set1_ps(x);
#elif defined(VECTORS_256)
  return (V)_mm256_set1_ps(x);
#else
  V v;
  for (int i = 0; i < W; i++) v[i] = x;
  return v;
#endif
}
// Maximum and minimum; x where it is NaN, so that NaN is never lost.
INLINE V max(V bound, V x) {
#if defined(VECTORS_512)
  return (V)_mm512_max_ps((__m512)bound, (__m512)x);
#elif defined(VECTORS_256)
  return (V)_mm256_max_ps((__m256)bound, (__m256)x);
#else
  return x < bound ? bound : x;
#endif
}
INLINE V min(V bound, V x) {
#if defined(VECTORS_512)
  return (V)_mm512_min_ps((__m512)bound, (__m512)x);
#elif defined(VECTORS_256)
  return (V)_mm256_min_ps((__m256)bound, (__m256)x);
#else
  return x > bound ? bound : x;
#endif
}

// Lanes of two vectors by their numbers, those of the second from W. Numbers that the compiler knows make it one instruction.
INLINE V lanes_of(V a, V b, VI from) {
#if defined(__clang__)
  V v;
  for (int i = 0; i < W; i++) v[i] = from[i] < W ? a[from[i]] : b[from[i] - W];
  return v;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

// Lanes moved by `count`; those at the end come from the beginning.
INLINE V rotate(V v, int count) {
  VI from;
  for (int i = 0; i < W; i++) from[i] = (i + count) % W;
  return lanes_of(v, v, from);
}

// Sum and maximum of the lanes, by halves.
INLINE float total(V v) {
#pragma GCC unroll 4
  for (int half = W / 2; half; half /= 2) v += rotate(v, half);
  return v[0];
}
INLINE float largest(V v) {
#pragma GCC unroll 4
  for (int half = W / 2; half; half /= 2) v = max(v, rotate(v, half));
  return v[0];
}

// Exchanges the rows and columns of a square: quarters of smaller and smaller squares.
INLINE void transpose(V (&rows)[W]) {
#pragma GCC unroll 4
  for (int s = 1; s < W; s *= 2)
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) {
      if (i & s) continue;
      const V a = rows[i], b = rows[i | s];
      VI upper, lower;
      for (int j = 0; j < W; j++) {
        upper[j] = j & s ? W + (j ^ s) : j;
        lower[j] = j & s ? W + j : j ^ s;
      }
      rows[i] = lanes_of(a, b, upper), rows[i | s] = lanes_of(a, b, lower);
    }
}

// bfloat16: the upper half of a float32. Conversion rounds to the nearest, to even of two.
typedef uint32_t VU __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef uint16_t VH __attribute__((vector_size(W * 2), aligned(2), may_alias));
typedef uint32_t VPairs __attribute__((vector_size(W * 4), aligned(2), may_alias));  // wherever a value may be

// Bits of a bfloat16 in the lower halves. NaN stays NaN: rounding could make it infinite.
INLINE VU rounded(V x) {
  const VU bits = (VU)x;
  return x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : bits >> 16 | 0x40;
}
struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  INLINE BFloat16(float x) {
    uint32_t whole;
    std::memcpy(&whole, &x, sizeof whole);
    bits = (uint16_t)(x == x ? (whole + 0x7fff + (whole >> 16 & 1)) >> 16 : whole >> 16 | 0x40);
  }
  INLINE operator float() const {
    const uint32_t whole = (uint32_t)bits << 16;
    float x;
    std::memcpy(&x, &whole, sizeof x);
    return x;
  }
};
INLINE V load(const BFloat16* p) {
#if defined(VECTORS_512)
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(VECTORS_256) && defined(__AVX2__)
  return (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  return (V)(__builtin_convertvector(*(const VH*)p, VU) << 16);
#endif
}
INLINE void store(BFloat16* p, V v) {
#if defined(VECTORS_512) && defined(__AVX512BF16__)
  *(VH*)p = (VH)_mm512_cvtneps_pbh((__m512)v);
#elif defined(VECTORS_512)
  *(VH*)p = (VH)_mm512_cvtepi32_epi16((__m512i)rounded(v));
#elif defined(VECTORS_256) && defined(__AVX2__)
  const __m256i bits = (__m256i)rounded(v);
  *(VH*)p = (VH)_mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
#else
  *(VH*)p = __builtin_convertvector(rounded(v), VH);
#endif
}
// 2 * W adjacent values as two vectors, those at even and those at odd places: half the instructions of two vectors of
// adjacent values.
INLINE void load_pairs(const BFloat16* p, V& even, V& odd) {
  const VU bits = *(const VPairs*)p;
  even = (V)(bits << 16), odd = (V)(bits & 0xffff0000);
}
INLINE void store_pairs(BFloat16* p, V even, V odd) {
#if defined(VECTORS_512) && defined(__AVX512BF16__)
  VU places;  // each has two numbers of 16 bits: places of an even and of an odd value
  for (uint32_t i = 0; i < (uint32_t)W; i++) places[i] = i | (W + i) << 16;
  *(VPairs*)p = (VPairs)_mm512_permutexvar_epi16((__m512i)places, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
#else
  *(VPairs*)p = rounded(even) | rounded(odd) << 16;
#endif
}
INLINE V splat(BFloat16 x) {
#if defined(VECTORS_512)
  return (V)_mm512_and_si512(_mm512_set1_epi16((short)x.bits), _mm512_set1_epi32((int)0xffff0000));
#else
  return splat((float)x);
#endif
}

// Values of maps and packed weights of products: one of these two types in a library. PAIR of them fill 32 bits.
#if defined(FOVEAL_BFLOAT16)
typedef BFloat16 Value;
#else
typedef float Value;
#endif
template <class T>
constexpr int pair_size = sizeof(float) / sizeof(T);
constexpr int PAIR = pair_size<Value>;

INLINE V relu(V x) { return max(splat(0), x); }
INLINE V clamp(V x, V low, V high) { return min(high, max(low, x)); }
INLINE V clamp(V x, float low, float high) { return clamp(x, splat(low), splat(high)); }

// e^x with an error of about 1e-7, for x clamped to -87 .. 88.
INLINE V exp(V x) {
  x = clamp(x, -87.0f, 88.0f);
  const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  V n = (x * 1.44269504f + magic) - magic;
  V r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  V p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  VI e = __builtin_convertvector(n, VI);
  e = (e + 127) << 23;
  V scale;
  std::memcpy(&scale, &e, sizeof scale);
  return p * scale;
}

INLINE V sigmoid(V x) { return 1.0f / (1.0f + exp(-x)); }

// erf(x), error below 2e-7: x times a polynomial of t = x^2 / 8 - 1, fitted to erf(x) / x for |x| <= 4. It has no
// division and no exponential, so it costs half of the usual approximations.
INLINE V erf(V x) {
  x = clamp(x, -4, 4);
  const V t = x * x * 0.125f - 1.0f;
  V p = splat(0.0024388989f);
  p = p * t - 0.00594268972f;
  p = p * t + 0.00353133259f;
  p = p * t - 0.00321071851f;
  p = p * t + 0.014865391f;
  p = p * t - 0.0265909862f;
  p = p * t + 0.0331308879f;
  p = p * t - 0.0441304296f;
  p = p * t + 0.0597856902f;
  p = p * t - 0.0750553682f;
  p = p * t + 0.0902323499f;
  p = p * t - 0.10768187f;
  p = p * t + 0.131673485f;
  p = p * t - 0.176576942f;
  p = p * t + 0.353531003f;
  return x * p;
}

// ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|), the logarithm by its series in z = t / (2 + t): t is at most 1.
INLINE V softplus(V x) {
  V t = exp(x < splat(0) ? x : -x);
  V z = t / (2.0f + t), z2 = z * z;
  V p = splat(1 / 15.0f);
  p = p * z2 + 1 / 13.0f;
  p = p * z2 + 1 / 11.0f;
  p = p * z2 + 1 / 9.0f;
  p = p * z2 + 1 / 7.0f;
  p = p * z2 + 1 / 5.0f;
  p = p * z2 + 1 / 3.0f;
  p = p * z2 + 1.0f;
  return max(splat(0), x) + 2.0f * z * p;
}

// The numbers are part of the interface: plan.py has the same list.
enum Act { NONE, RELU, RELU6, HARDSWISH, GELU_TANH, GELU, SILU, SIGMOID, HARDSIGMOID, TANH, SOFTPLUS };

template <int A>
INLINE V activate_as(V x) {
  switch (A) {
    case HARDSWISH:
      return x * clamp(x * (1 / 6.0f) + 0.5f, 0, 1);
    case GELU_TANH:
      return x * sigmoid((x + x * x * x * 0.044715f) * 1.5957691216f);
    case GELU:
      return x * 0.5f * (1.0f + erf(x * 0.70710678f));
    case SILU:
      return x * sigmoid(x);
    case SIGMOID:
      return sigmoid(x);
    case HARDSIGMOID:
      return clamp(x * (1 / 6.0f) + 0.5f, 0, 1);
    case TANH:
      return 2.0f * sigmoid(2.0f * x) - 1.0f;
    case SOFTPLUS:
      return softplus(x);
    default:
      return x;
  }
}

// Activation of `count` vectors in memory.
template <int A, class T>
inline void activate_as(T* values, int64_t count) {
  for (int64_t i = 0; i < count; i++) store(values + i * W, activate_as<A>(load(values + i * W)));
}
template <class T>
__attribute__((noinline)) void activate(int act, T* values, int64_t count) {
  switch (act) {
    case RELU:
      for (int64_t i = 0; i < count; i++) store(values + i * W, relu(load(values + i * W)));
      break;
    case RELU6:
      for (int64_t i = 0; i < count; i++) store(values + i * W, clamp(load(values + i * W), 0, 6));
      break;
    case HARDSWISH:
      activate_as<HARDSWISH>(values, count);
      break;
    case GELU_TANH:
      activate_as<GELU_TANH>(values, count);
      break;
    case GELU:
      activate_as<GELU>(values, count);
      break;
    case SILU:
      activate_as<SILU>(values, count);
      break;
    case SIGMOID:
      activate_as<SIGMOID>(values, count);
      break;
    case HARDSIGMOID:
      activate_as<HARDSIGMOID>(values, count);
      break;
    case TANH:
      activate_as<TANH>(values, count);
      break;
    case SOFTPLUS:
      activate_as<SOFTPLUS>(values, count);
      break;
  }
}

// Activations in two kinds that are cheap enough for the inner loops: bounds, and hard swish. The others pass over
// values that were stored and are still in the first-level cache.
struct Bounds {
  V low, high;
  INLINE explicit Bounds(int act)
      : low(splat(act == RELU || act == RELU6 ? 0.0f : -__builtin_inff())),
        high(splat(act == RELU6 ? 6.0f : __builtin_inff())) {}
  INLINE V operator()(V x) const { return clamp(x, low, high); }
};
struct HardSwish {
  INLINE V operator()(V x) const { return activate_as<HARDSWISH>(x); }
};
// Either kind, chosen at run time: half as many instances of a function, which the compiler needs time for.
struct Cheap {
  Bounds bounds;
  bool hard;
  INLINE explicit Cheap(int act) : bounds(act), hard(act == HARDSWISH) {}
  INLINE V operator()(V x) const { return hard ? HardSwish()(x) : bounds(x); }
};
INLINE bool in_place(int act) { return act > HARDSWISH; }
template <class F>
INLINE void with_act(int act, F&& f) {
  if (act == HARDSWISH)
    f(HardSwish());
  else
    f(Bounds(act));
}
