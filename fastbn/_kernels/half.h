/* float16 and bfloat16 are storage only: values are widened to float32 when they are gathered into a tile, which is
   exact, and rounded to the nearest (ties to even) when results are put away. NaN stays NaN. */
#ifndef FASTBN_HALF_H
#define FASTBN_HALF_H
#include <stdint.h>
#include <string.h>

static inline uint32_t float_bits(float v) { uint32_t b; memcpy(&b, &v, 4); return b; }
static inline float bits_float(uint32_t b) { float v; memcpy(&v, &b, 4); return v; }

static inline float widen_bfloat16(uint16_t h) { return bits_float((uint32_t)h << 16); }

static inline uint16_t narrow_bfloat16(float v) {
    uint32_t b = float_bits(v);
    uint32_t rounded = (b + 0x7fff + (b >> 16 & 1)) >> 16;
    return (uint16_t)(v != v ? b >> 16 | 0x40 : rounded);
}

/* The exponent of float16 is too small by 112 where it is not all ones: the product corrects it, and makes subnormal
   numbers normal. */
static inline float widen_float16(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t b = float_bits(bits_float(magnitude) * bits_float(239u << 23));
    if (magnitude >= 0x7c00u << 13)
        b = magnitude | 255u << 23;
    return bits_float(b | sign);
}

static inline uint16_t narrow_float16(float v) {
    uint32_t b = float_bits(v), sign = b >> 16 & 0x8000, magnitude = b & 0x7fffffff, h;
    if (magnitude >= 143u << 23)                /* 65536 and more, NaN */
        h = magnitude > 255u << 23 ? 0x7e00 : 0x7c00;
    else if (magnitude < 113u << 23)            /* subnormal: adding 1/2 rounds at the last of its bits */
        h = float_bits(bits_float(magnitude) + 0.5f) - (126u << 23);
    else
        h = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
    return (uint16_t)(h | sign);
}

static inline void widen_bfloat16s(const uint16_t *from, float *to, intptr_t n) {
    for (intptr_t i = 0; i < n; i++)
        to[i] = widen_bfloat16(from[i]);
}

static inline void narrow_bfloat16s(const float *from, uint16_t *to, intptr_t n) {
    for (intptr_t i = 0; i < n; i++)
        to[i] = narrow_bfloat16(from[i]);
}

static inline void widen_float16s(const uint16_t *from, float *to, intptr_t n) {
    intptr_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#endif
    for (; i < n; i++)
        to[i] = widen_float16(from[i]);
}

static inline void narrow_float16s(const float *from, uint16_t *to, intptr_t n) {
    intptr_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++)
        to[i] = narrow_float16(from[i]);
}
#endif
