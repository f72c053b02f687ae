// Vectors of floats in the compiler's own vector extension, as wide as the target's registers: AVX-512, AVX, or 128 bits.
// Everything that depends on the width lies in the namespace VANTAGE_WIDTH, which is `wide`, or `narrow` for at most
// eight lanes: rows of up to eight queries would leave half of sixteen lanes empty.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "bfloat16.h"

#ifndef VANTAGE_MAX_LANES
#define VANTAGE_MAX_LANES 16
#endif

namespace vantage::VANTAGE_WIDTH {

#if defined(__AVX512F__) && defined(__AVX512VL__)
constexpr int kLanes = VANTAGE_MAX_LANES;
constexpr int kRegisters = 32;
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
#else
constexpr int kLanes = 4;
constexpr int kRegisters = 16;
#endif
// Accumulators that fit the register file beside their operands: rows x offsets, rows x dims
constexpr int kMaxRows = kRegisters == 32 ? 3 : 2;
constexpr int kMaxOffsets = kRegisters == 32 ? 8 : 5;
constexpr int kMaxDims = kRegisters == 32 ? 8 : 4;

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

static inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
static inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
static inline Vec splat(float x) { return Vec{} + x; }

// Keeps a value that several multiplications share in a register: compilers fold its load into each of them, and loads
// that cross cache lines are what the inner loops are short of
static inline void keep(Vec& v) {
#if defined(__x86_64__) && defined(__AVX__)
  asm("" : "+v"(v));
#endif
}

// kLanes values at p; the first `count` of them, zeros behind
static inline Vec load_whole(const float* p) { return load(p); }
static inline Vec load_whole(const BFloat16* p) {
  typedef uint16_t Half __attribute__((vector_size(kLanes * 2)));
  typedef uint32_t Wide __attribute__((vector_size(kLanes * 4)));
  Half half;
  std::memcpy(&half, p, sizeof(half));
  return reinterpret_cast<Vec>(__builtin_convertvector(half, Wide) << 16);
}
template <typename T>
static inline Vec load_part(const T* p, int64_t count) {
  if (count >= kLanes) return load_whole(p);
  T padded[kLanes] = {};
  std::memcpy(padded, p, size_t(count) * sizeof(T));
  return load_whole(padded);
}

static inline void store_part(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  std::memcpy(p, &v, size_t(count) * 4);
}
static inline void store_part(BFloat16* p, Vec v, int64_t count) {
  typedef uint16_t Half __attribute__((vector_size(kLanes * 2)));
  typedef uint32_t Wide __attribute__((vector_size(kLanes * 4)));
  const Wide bits = reinterpret_cast<Wide>(v);
  const Wide rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Wide quiet = (bits >> 16) | 0x40u;
  const Half half = __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, Half);
  std::memcpy(p, &half, size_t(count >= kLanes ? kLanes : count) * 2);
}

// 2^x for x <= 0, relative error 2e-7; a NaN stays one, -inf and all below -126 give 2^-126
static inline Vec exp2_negative(Vec x) {
  x = x < -126.0f ? splat(-126.0f) : x;
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);  // in [-0.5, 0.5]
  const IntVec power = (reinterpret_cast<IntVec>(shifted) - reinterpret_cast<IntVec>(magic) + 127) << 23;
  Vec p = splat(1.5403530e-4f);  // ln(2)^n / n!
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return p * reinterpret_cast<Vec>(power);
}

// log2(x) for normal x >= 1 (here a sum of exponentials whose largest is 1), absolute error 2e-7 * max(1, log2(x))
static inline Vec log2_positive(Vec x) {
  IntVec bits = reinterpret_cast<IntVec>(x);
  // mantissa in [sqrt(1/2), sqrt(2)) so that the series converges fast
  IntVec exponent = (bits - 0x3f3504f3) >> 23;
  const Vec m = reinterpret_cast<Vec>(bits - (exponent << 23));
  const Vec z = (m - 1.0f) / (m + 1.0f);  // |z| <= 0.1716; log(m) = 2 (z + z^3/3 + z^5/5 + ...)
  const Vec z2 = z * z;
  Vec series = splat(2.0f / 9.0f);
  series = series * z2 + 2.0f / 7.0f;
  series = series * z2 + 2.0f / 5.0f;
  series = series * z2 + 2.0f / 3.0f;
  series = series * z2 + 2.0f;
  const Vec result = __builtin_convertvector(exponent, Vec) + series * z * 1.44269504f;
  return x == x ? result : x;
}

template <typename T>
static inline float dot(const T* a, const T* b, int64_t dim) {
  Vec sum{};
  for (int64_t d = 0; d < dim; d += kLanes) {
    const int64_t count = dim - d < kLanes ? dim - d : kLanes;
    sum += load_part(a + d, count) * load_part(b + d, count);
  }
  float total = 0.0f;
  for (int i = 0; i < kLanes; ++i) total += sum[i];
  return total;
}

namespace detail {
template <int Step, bool Low, int... I>
static inline Vec exchange(Vec a, Vec b, std::integer_sequence<int, I...>) {
  // low: a where the column's Step bit is clear, else b from Step columns earlier; high: the other two quarters
  return Low ? __builtin_shufflevector(a, b, ((I & Step) ? kLanes + I - Step : I)...)
             : __builtin_shufflevector(a, b, ((I & Step) ? kLanes + I : I + Step)...);
}
template <int Step>
static inline void exchange_all(Vec* m) {
  using Lanes = std::make_integer_sequence<int, kLanes>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & Step) continue;
    const Vec a = m[i], b = m[i + Step];
    m[i] = exchange<Step, true>(a, b, Lanes{});
    m[i + Step] = exchange<Step, false>(a, b, Lanes{});
  }
}
}  // namespace detail

// Transposes a kLanes x kLanes matrix held in registers
static inline void transpose(Vec* m) {
  detail::exchange_all<1>(m);
  detail::exchange_all<2>(m);
  if constexpr (kLanes >= 8) detail::exchange_all<4>(m);
  if constexpr (kLanes >= 16) detail::exchange_all<8>(m);
}

}  // namespace vantage::VANTAGE_WIDTH
