/* float16 and bfloat16 are storage only: values are widened to float32, which is exact, and results are rounded to the
   nearest (ties to even). NaN stays NaN. */
#ifndef FASTBN_HALF_H
#define FASTBN_HALF_H
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

/* For what a loop does with each line: its values must stay in registers. */
#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define ALWAYS_INLINE static __forceinline
#else
#define ALWAYS_INLINE static inline
#endif

typedef struct { uint16_t bits; } float16_t;
typedef struct { uint16_t bits; } bfloat16_t;

static inline uint32_t float_bits(float v) { uint32_t b; memcpy(&b, &v, 4); return b; }
static inline float bits_float(uint32_t b) { float v; memcpy(&v, &b, 4); return v; }

static inline float widen_bfloat16(uint16_t h) { return bits_float((uint32_t)h << 16); }

static inline uint16_t narrow_bfloat16(float v) {
    uint32_t b = float_bits(v);
    return (uint16_t)(v != v ? b >> 16 | 0x40 : (b + 0x7fff + (b >> 16 & 1)) >> 16);
}

#ifdef __AVX2__
/* The same for 8 values, each in 32 bits; compilers make three times as many instructions of it. The last 16 bits of a
   NaN must be 0, as they are where it comes of bfloat16 values: others may be rounded up until they are numbers. */
ALWAYS_INLINE __m256i narrow_8_bfloat16(__m256 v) {
    __m256i b = _mm256_castps_si256(v);
    __m256i odd = _mm256_srli_epi32(_mm256_slli_epi32(b, 15), 31);      /* no constant: registers are few */
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), odd), 16);
}

/* a[0:4], b[0:4], a[4:8], b[4:8]: what instructions make without moving values between halves of a register. */
ALWAYS_INLINE __m256i narrow_fours(__m256 a, __m256 b) {
    return _mm256_packus_epi32(narrow_8_bfloat16(a), narrow_8_bfloat16(b));
}
#endif

#ifdef __F16C__
static inline float widen_float16(uint16_t h) { return _cvtsh_ss(h); }
static inline uint16_t narrow_float16(float v) { return _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT); }
#else
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
#endif

ALWAYS_INLINE void widen_bfloat16s(const bfloat16_t *from, float *to, intptr_t n) {
    intptr_t i = 0;
#ifdef __AVX2__     /* (Compilers that make vectors of the loop below take many more instructions.) */
    for (; i + 8 <= n; i += 8) {
        __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(from + i)));
        _mm256_storeu_ps(to + i, _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16)));
    }
#endif
    for (; i < n; i++)
        to[i] = widen_bfloat16(from[i].bits);
}

ALWAYS_INLINE void narrow_bfloat16s(const float *from, bfloat16_t *to, intptr_t n) {
    intptr_t i = 0;
#ifdef __AVX2__
    for (; i + 16 <= n; i += 16) {      /* one store: it is read again as one */
        __m256i both = narrow_fours(_mm256_loadu_ps(from + i), _mm256_loadu_ps(from + i + 8));
        _mm256_storeu_si256((__m256i *)(to + i), _mm256_permute4x64_epi64(both, 0xd8));
    }
#endif
    for (; i < n; i++)
        to[i].bits = narrow_bfloat16(from[i]);
}

/* 16 values for loops in which all are treated alike: with AVX2 those in even places come first, which takes less. */
ALWAYS_INLINE void widen_line_bfloat16(const bfloat16_t *from, float *to) {
#ifdef __AVX2__
    __m256i line = _mm256_loadu_si256((const __m256i *)from);
    __m256i odd = _mm256_blend_epi16(_mm256_setzero_si256(), line, 0xaa);
    _mm256_storeu_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32(line, 16)));
    _mm256_storeu_ps(to + 8, _mm256_castsi256_ps(odd));
#else
    widen_bfloat16s(from, to, 16);
#endif
}

/* (NaN as in narrow_8_bfloat16().) */
ALWAYS_INLINE void narrow_line_bfloat16(const float *from, bfloat16_t *to) {
#ifdef __AVX2__
    __m256i even = _mm256_castps_si256(_mm256_loadu_ps(from)), odd = _mm256_castps_si256(_mm256_loadu_ps(from + 8));
    __m256i high = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
    __m256i low = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
    __m256i least = _mm256_srai_epi16(_mm256_slli_epi16(high, 15), 15);     /* that is not rounded up, as int16 */
    __m256i up = _mm256_cmpgt_epi16(_mm256_xor_si256(low, _mm256_set1_epi16(-0x8000)), least);
    _mm256_storeu_si256((__m256i *)to, _mm256_sub_epi16(high, up));
#else
    narrow_bfloat16s(from, to, 16);
#endif
}

ALWAYS_INLINE void widen_float16s(const float16_t *from, float *to, intptr_t n) {
    intptr_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#endif
    for (; i < n; i++)
        to[i] = widen_float16(from[i].bits);
}

ALWAYS_INLINE void narrow_float16s(const float *from, float16_t *to, intptr_t n) {
    intptr_t i = 0;
#ifdef __F16C__
    for (; i + 16 <= n; i += 16) {
        __m128i a = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
        __m128i b = _mm256_cvtps_ph(_mm256_loadu_ps(from + i + 8), _MM_FROUND_TO_NEAREST_INT);
        _mm256_storeu_si256((__m256i *)(to + i), _mm256_set_m128i(b, a));
    }
#endif
    for (; i < n; i++)
        to[i].bits = narrow_float16(from[i]);
}
#endif
