// float16 and bfloat16 as storage: read to float32, written with round-to-nearest-even.
// On a device these are CUDA's own types; on a host, two bytes and the conversions below.
#pragma once

#include "speechssm/platform.hpp"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

SPEECHSSM_OPEN

struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

namespace number_detail {
SPEECHSSM_HD float from_bits(std::uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
SPEECHSSM_HD std::uint32_t to_bits(float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
}  // namespace number_detail

SPEECHSSM_HD float read(float value) { return value; }
SPEECHSSM_HD void write(float* where, float value) { *where = value; }

SPEECHSSM_HD float read(BFloat16 value) {
    return number_detail::from_bits(static_cast<std::uint32_t>(value.bits) << 16);
}

SPEECHSSM_HD void write(BFloat16* where, float value) {
#if defined(__CUDA_ARCH__)
    where->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
    const std::uint32_t bits = number_detail::to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {  // a NaN keeps its sign and must not round to infinity
        where->bits = static_cast<std::uint16_t>((bits >> 16) | 0x40u);
        return;
    }
    where->bits = static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

SPEECHSSM_HD float read(Half value) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(value.bits));
#else
    const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
    const std::uint32_t magnitude = static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
    const std::uint32_t exponent = magnitude & 0x0f800000u;
    if (exponent == 0x0f800000u) return number_detail::from_bits(sign | magnitude | 0x70000000u);  // inf, NaN
    // Placing the bits as if the bias were float32's and multiplying by 2^112 is exact, subnormals included.
    const float scaled = number_detail::from_bits(magnitude) * 0x1p112f;
    return number_detail::from_bits(number_detail::to_bits(scaled) | sign);
#endif
}

SPEECHSSM_HD void write(Half* where, float value) {
#if defined(__CUDA_ARCH__)
    // By value: with nvcc 13.0 a memcpy from the rounded number stores its upper byte alone.
    where->bits = __half_as_ushort(__float2half_rn(value));
#else
    const std::uint32_t bits = number_detail::to_bits(value);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    std::uint32_t rounded;
    if (magnitude > 0x7f800000u) {
        rounded = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // NaN
    } else if (magnitude >= 0x477ff000u) {
        rounded = 0x7c00u;  // 65520 and above round to infinity
    } else if (magnitude < 0x38800000u) {
        // Below 2^-14 the spacing is 2^-24, which is float32's spacing in [0.5, 1): let the adder round.
        const float shifted = number_detail::from_bits(magnitude) + 0.5f;
        rounded = number_detail::to_bits(shifted) - 0x3f000000u;
    } else {
        rounded = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    where->bits = static_cast<std::uint16_t>(sign | rounded);
#endif
}

SPEECHSSM_CLOSE
