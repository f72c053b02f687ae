#pragma once

#include <cstdint>
#include <cstring>

namespace vantage {

// bfloat16 is the upper half of a float; stored with rounding to nearest even, NaN kept
struct BFloat16 {
  uint16_t bits;
};

static inline float to_float(float x) { return x; }
static inline float to_float(BFloat16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float result;
  std::memcpy(&result, &wide, 4);
  return result;
}
static inline void from_float(float x, float* out) { *out = x; }
static inline void from_float(float x, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = uint16_t(is_nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

}  // namespace vantage
