/* The partial sums of a reduction: 16 float64 side by side, in as many registers as it takes. One type and a few
   operations on it, because compilers keep arrays of partial sums in registers in some loops and on the stack in
   others. Every operation acts on each lane by itself: the bits do not depend on the registers. */
#ifndef FASTBN_LANES_H
#define FASTBN_LANES_H
#include <stdint.h>
#include "half.h"
#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#endif

/* Before a variable, or behind `struct`: it begins where a cache line does. */
#if defined(__GNUC__)
#define ON_A_LINE __attribute__((aligned(64)))
#elif defined(_MSC_VER)
#define ON_A_LINE __declspec(align(64))
#else
#define ON_A_LINE
#endif

#if defined(__AVX__)
typedef __m256d part_t;
#define EACH_PART(f) f(a, 0) f(b, 4) f(c, 8) f(d, 12)
#define LAST_PARTS(f) f(d, 12)
typedef struct { part_t a, b, c, d; } lanes_t;
#define PART_LOAD(p) _mm256_loadu_pd(p)
#define PART_STORE(p, v) _mm256_storeu_pd(p, v)
#define PART_WIDEN(p) _mm256_cvtps_pd(_mm_loadu_ps(p))
#define PART_ALL(v) _mm256_set1_pd(v)
#define PART_ADD(x, y) _mm256_add_pd(x, y)
#define PART_SUB(x, y) _mm256_sub_pd(x, y)
#define PART_MUL(x, y) _mm256_mul_pd(x, y)
#define PART_AND(x, p) _mm256_and_pd(x, _mm256_castsi256_pd(_mm256_loadu_si256((const __m256i *)(p))))
#define PART_ABOVE_0(x) _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_GT_OQ)
#define PART_WITHIN(x, low, high) _mm256_and_pd(_mm256_cmp_pd(x, low, _CMP_GE_OQ), _mm256_cmp_pd(x, high, _CMP_LE_OQ))
#define PART_CHOOSE(mask, x, y) _mm256_xor_pd(_mm256_and_pd(mask, _mm256_xor_pd(x, y)), y)
#elif defined(__SSE2__) || defined(_M_X64)
typedef __m128d part_t;
#define EACH_PART(f) f(a, 0) f(b, 2) f(c, 4) f(d, 6) f(e, 8) f(g, 10) f(h, 12) f(i, 14)
#define LAST_PARTS(f) f(h, 12) f(i, 14)
typedef struct { part_t a, b, c, d, e, g, h, i; } lanes_t;
#define PART_LOAD(p) _mm_loadu_pd(p)
#define PART_STORE(p, v) _mm_storeu_pd(p, v)
#define PART_WIDEN(p) _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(p))))
#define PART_ALL(v) _mm_set1_pd(v)
#define PART_ADD(x, y) _mm_add_pd(x, y)
#define PART_SUB(x, y) _mm_sub_pd(x, y)
#define PART_MUL(x, y) _mm_mul_pd(x, y)
#define PART_AND(x, p) _mm_and_pd(x, _mm_castsi128_pd(_mm_loadu_si128((const __m128i *)(p))))
#define PART_ABOVE_0(x) _mm_cmpgt_pd(x, _mm_setzero_pd())
#define PART_WITHIN(x, low, high) _mm_and_pd(_mm_cmpge_pd(x, low), _mm_cmple_pd(x, high))
#define PART_CHOOSE(mask, x, y) _mm_xor_pd(_mm_and_pd(mask, _mm_xor_pd(x, y)), y)
#else
typedef double part_t;
#define EACH_PART(f) f(a, 0) f(b, 1) f(c, 2) f(d, 3) f(e, 4) f(g, 5) f(h, 6) f(i, 7) \
    f(j, 8) f(k, 9) f(l, 10) f(m, 11) f(n, 12) f(o, 13) f(q, 14) f(s, 15)
#define LAST_PARTS(f) f(n, 12) f(o, 13) f(q, 14) f(s, 15)
typedef struct { part_t a, b, c, d, e, g, h, i, j, k, l, m, n, o, q, s; } lanes_t;
#define PART_LOAD(p) (*(p))
#define PART_STORE(p, v) (*(p) = (v))
#define PART_WIDEN(p) ((double)*(p))
#define PART_ALL(v) (v)
#define PART_ADD(x, y) ((x) + (y))
#define PART_SUB(x, y) ((x) - (y))
#define PART_MUL(x, y) ((x)*(y))
#define PART_AND(x, p) (*(p) ? (x) : 0.0)
#define PART_ABOVE_0(x) ((x) > 0)
#define PART_WITHIN(x, low, high) (((x) >= (low)) & ((x) <= (high)))
#define PART_CHOOSE(mask, x, y) ((mask) ? (x) : (y))
#endif
enum { VECTOR = sizeof(part_t) };   /* bytes */

/* For x and y that were float32: their product is exact in float64, so fused or not the bits are the same. */
#if defined(__FMA__) && defined(__AVX__)
#define PART_ADD_EXACT(x, y, z) _mm256_fmadd_pd(x, y, z)
#else
#define PART_ADD_EXACT(x, y, z) PART_ADD(PART_MUL(x, y), z)
#endif

#define LANES_FUNCTION(name, arguments, part) \
    static inline lanes_t name arguments { lanes_t r; EACH_PART(part) return r; }

#define PART(f, i) r.f = PART_LOAD(p + i);
LANES_FUNCTION(lanes_load, (const double *p), PART)
#undef PART
#define PART(f, i) r.f = PART_WIDEN(p + i);
LANES_FUNCTION(lanes_widen, (const float *p), PART)
#undef PART
/* Sums in memory. A vector that lies across two lines is read and written as two, and waits longer where it was written
   just before. On the stack that is a matter of the process: training on 14x14 took 1.4 times as long in half of them. */
typedef struct ON_A_LINE { double sums[16]; } sums_line_t;
typedef struct ON_A_LINE { double s[16], t[16]; } Lanes;

/* Half types become float32 first, by way of memory: to widen values that are loaded takes one instruction on one of two
   ports, to widen those in registers two or three, all on the port that shuffles. That memory is one cache line: where
   it lay across two pages, which a process finds out when it starts, everything took five times as long. */
#if defined(__GNUC__)
#define IN_MEMORY(line) __asm__("" : "+m"(line))
#else
#define IN_MEMORY(line) ((void)0)
#endif
static inline lanes_t lanes_widen_float16(const void *p) {
    ON_A_LINE float line[16];
    widen_float16s((const float16_t *)p, line, 16);
    IN_MEMORY(line);
    return lanes_widen(line);
}
static inline lanes_t lanes_widen_bfloat16(const void *p) {
    ON_A_LINE float line[16];
#ifdef __AVX2__
    lanes_t r;          /* (unpacked are a and c, then b and d: lanes keep the order of the values) */
    __m256i values = _mm256_loadu_si256((const __m256i *)p), low = _mm256_setzero_si256();
    _mm256_storeu_ps(line, _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, values)));
    _mm256_storeu_ps(line + 8, _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, values)));
    IN_MEMORY(line);
    r.a = PART_WIDEN(line), r.c = PART_WIDEN(line + 4), r.b = PART_WIDEN(line + 8), r.d = PART_WIDEN(line + 12);
    return r;
#else
    widen_bfloat16s((const bfloat16_t *)p, line, 16);
    IN_MEMORY(line);
    return lanes_widen(line);
#endif
}
#define PART(f, i) r.f = PART_ALL(v);
LANES_FUNCTION(lanes_all, (double v), PART)
#undef PART
#define PART(f, i) r.f = PART_ADD(x.f, y.f);
LANES_FUNCTION(lanes_add, (lanes_t x, lanes_t y), PART)
#undef PART
#define PART(f, i) r.f = PART_SUB(x.f, y.f);
LANES_FUNCTION(lanes_sub, (lanes_t x, lanes_t y), PART)
#undef PART
#define PART(f, i) r.f = PART_MUL(x.f, y.f);
LANES_FUNCTION(lanes_mul, (lanes_t x, lanes_t y), PART)
#undef PART
#define PART(f, i) r.f = PART_ADD_EXACT(x.f, y.f, z.f);
LANES_FUNCTION(lanes_add_exact, (lanes_t x, lanes_t y, lanes_t z), PART)
#undef PART

/* z + x*p for values p that are widened one part after the other: that takes fewer registers than all of them at once. */
#define PART(f, i) r.f = PART_ADD_EXACT(x.f, PART_WIDEN(p + i), z.f);
LANES_FUNCTION(lanes_add_widened, (lanes_t x, const float *p, lanes_t z), PART)
#undef PART

/* s += dy, t += dy*x for values that were float32, part by part: that takes the fewest registers of all. */
#define PART(f, i) { \
    part_t g = PART_WIDEN(dy + i); \
    s->f = PART_ADD(s->f, g); \
    t->f = PART_ADD_EXACT(g, PART_WIDEN(x + i), t->f); \
}
static inline void lanes_add_both(const float *dy, const float *x, lanes_t *s, lanes_t *t) { EACH_PART(PART) }
#undef PART

/* Where registers are few, let compilers keep something else in memory: a sum would have to go through it line by line. */
#if defined(__AVX__) && defined(__GNUC__)
#define IN_REGISTERS(x) __asm__("" : "+x"((x).a), "+x"((x).b), "+x"((x).c), "+x"((x).d))
#else
#define IN_REGISTERS(x) ((void)0)
#endif
static inline void lanes_in_registers(lanes_t *x) { IN_REGISTERS(*x); }

/* dy where low <= x <= high, else dy*slope. */
#define PART(f, i) r.f = PART_MUL(dy.f, PART_CHOOSE(PART_WITHIN(x.f, low.f, high.f), PART_ALL(1.0), PART_ALL(slope)));
LANES_FUNCTION(lanes_leak, (lanes_t dy, lanes_t x, lanes_t low, lanes_t high, double slope), PART)
#undef PART

/* dy where y > 0, else dy*slope. */
#define PART(f, i) r.f = PART_MUL(dy.f, PART_CHOOSE(PART_ABOVE_0(y.f), PART_ALL(1.0), PART_ALL(slope)));
LANES_FUNCTION(lanes_leak_above_0, (lanes_t dy, lanes_t y, double slope), PART)
#undef PART

/* lanes_add() and lanes_add_exact() where only the last FEW lanes of x (and y) are not 0: what went into the others need
   not be computed. */
enum { FEW = 4 };
#define PART(f, i) r.f = PART_ADD(x.f, y.f);
static inline lanes_t lanes_add_few(lanes_t x, lanes_t y) { lanes_t r = y; LAST_PARTS(PART) return r; }
#undef PART
#define PART(f, i) r.f = PART_ADD_EXACT(x.f, y.f, z.f);
static inline lanes_t lanes_add_exact_few(lanes_t x, lanes_t y, lanes_t z) { lanes_t r = z; LAST_PARTS(PART) return r; }
#undef PART

/* The last n lanes of x, 0 in the others: by bits, so that NaN goes too. */
static const uint64_t LAST_LANES[32] = {
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
#define ALL_OF_4 ~(uint64_t)0, ~(uint64_t)0, ~(uint64_t)0, ~(uint64_t)0
    ALL_OF_4, ALL_OF_4, ALL_OF_4, ALL_OF_4};
#define PART(f, i) r.f = PART_AND(x.f, LAST_LANES + n + i);
LANES_FUNCTION(lanes_last, (lanes_t x, intptr_t n), PART)
#undef PART

#define PART(f, i) PART_STORE(p + i, x.f);
static inline void lanes_store(double *p, lanes_t x) { EACH_PART(PART) }
#undef PART

/* The sums of lanes, as trees: lanes 8 apart are added first, then 4, 2, 1. The first half of a tree leaves four numbers.
   Its additions wait for each other, so a loop over channels leaves the other half to one behind it. */
typedef struct ON_A_LINE { double s[4], t[4]; } fours_t;
static inline fours_t lanes_fours(lanes_t s, lanes_t t) {
    fours_t r;
#if defined(__AVX__)
    _mm256_storeu_pd(r.s, _mm256_add_pd(_mm256_add_pd(s.a, s.c), _mm256_add_pd(s.b, s.d)));
    _mm256_storeu_pd(r.t, _mm256_add_pd(_mm256_add_pd(t.a, t.c), _mm256_add_pd(t.b, t.d)));
#else
    double v[16], w[16];
    int k;
    lanes_store(v, s);
    lanes_store(w, t);
    for (k = 0; k < 4; k++) {
        r.s[k] = (v[k] + v[k + 8]) + (v[k + 4] + v[k + 12]);
        r.t[k] = (w[k] + w[k + 8]) + (w[k + 4] + w[k + 12]);
    }
#endif
    return r;
}

#if defined(__AVX__)
/* Lanes 2 apart: two numbers are left of s, then two of t. */
static inline __m256d fours_twos(const fours_t *f) {
    __m256d s = _mm256_loadu_pd(f->s), t = _mm256_loadu_pd(f->t);
    return _mm256_add_pd(_mm256_permute2f128_pd(s, t, 0x20), _mm256_permute2f128_pd(s, t, 0x31));
}
#endif

/* The sums of s and those of t, of n channels. */
static inline void fours_sums(const fours_t *fours, intptr_t n, double *s_of, double *t_of) {
    intptr_t k = 0;
#if defined(__AVX__)
    for (; k + 2 <= n; k += 2) {
        __m256d both = _mm256_hadd_pd(fours_twos(fours + k), fours_twos(fours + k + 1));
        _mm_storeu_pd(s_of + k, _mm256_castpd256_pd128(both));
        _mm_storeu_pd(t_of + k, _mm256_extractf128_pd(both, 1));
    }
#endif
    for (; k < n; k++) {
        const double *s = fours[k].s, *t = fours[k].t;
        s_of[k] = (s[0] + s[2]) + (s[1] + s[3]);
        t_of[k] = (t[0] + t[2]) + (t[1] + t[3]);
    }
}

static inline void lanes_sums(lanes_t s, lanes_t t, double *s_sum, double *t_sum) {
    fours_t fours = lanes_fours(s, t);
    fours_sums(&fours, 1, s_sum, t_sum);
}
#endif
