/* What neither C loops nor Cython can say: the floating-point mode of a thread, stores past the cache, lines as bits,
   memory lent to the system, OpenMP's pool around a fork, and the CPU. */
#ifndef FASTBN_PLATFORM_H
#define FASTBN_PLATFORM_H
#include <stdint.h>
#include <string.h>

/* Kernels run with rounding to nearest and subnormal numbers kept, whatever another library has set on this
   thread; the caller's mode (on x86 with its exception flags) comes back afterwards. */
#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
typedef unsigned int fp_mode;
static inline fp_mode fp_default(void) {
    fp_mode before = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return before;
}
static inline void fp_restore(fp_mode before) { _mm_setcsr(before); }
#elif defined(__aarch64__) && defined(__GNUC__)
typedef unsigned long long fp_mode;
static inline fp_mode fp_default(void) {
    fp_mode before, plain = 0;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(before));
    __asm__ __volatile__("msr fpcr, %0" : : "r"(plain) : "memory");
    return before;
}
static inline void fp_restore(fp_mode before) { __asm__ __volatile__("msr fpcr, %0" : : "r"(before) : "memory"); }
#else
typedef int fp_mode;
static inline fp_mode fp_default(void) { return 0; }
static inline void fp_restore(fp_mode before) { (void)before; }
#endif

/* Streaming stores go past the cache, a whole line at a time: `line` is 64 bytes, `to` is aligned to them. Compilers
   keep the line in registers. Other threads may read what was streamed after stream_fence(). */
#if defined(__SSE2__) || defined(_M_X64)
static inline void stream_line(void *to, const void *line) {
    char *t = (char *)to;
    const char *l = (const char *)line;
#ifdef __AVX__
    _mm256_stream_ps((float *)t, _mm256_loadu_ps((const float *)l));
    _mm256_stream_ps((float *)(t + 32), _mm256_loadu_ps((const float *)(l + 32)));
#else
    _mm_stream_ps((float *)t, _mm_loadu_ps((const float *)l));
    _mm_stream_ps((float *)(t + 16), _mm_loadu_ps((const float *)(l + 16)));
    _mm_stream_ps((float *)(t + 32), _mm_loadu_ps((const float *)(l + 32)));
    _mm_stream_ps((float *)(t + 48), _mm_loadu_ps((const float *)(l + 48)));
#endif
}
/* 32 bytes; the other half of the line follows at once, or went before. */
static inline void stream_half_line(void *to, const void *line) {
    const float *l = (const float *)line;
#ifdef __AVX__
    _mm256_stream_ps((float *)to, _mm256_loadu_ps(l));
#else
    _mm_stream_ps((float *)to, _mm_loadu_ps(l));
    _mm_stream_ps((float *)to + 4, _mm_loadu_ps(l + 4));
#endif
}
static inline void stream_fence(void) { _mm_sfence(); }
#else
static inline void stream_line(void *to, const void *line) { memcpy(to, line, 64); }
static inline void stream_half_line(void *to, const void *line) { memcpy(to, line, 32); }
static inline void stream_fence(void) {}
#endif

/* Lines by way of the cache: compilers copy them through the stack otherwise. The lower part goes first: left alone,
   compilers write the upper one first, and where lines of results do not begin where cache lines do, that takes twice
   as long (15 ns a row of 49 values instead of 8, Emerald Rapids). IN_ORDER orders what compilers do, and is no
   instruction. (Among streaming stores it would cost a tenth of a training forward.) */
#if defined(__GNUC__)
#define IN_ORDER __asm__ volatile("" ::: "memory")
#else
#define IN_ORDER ((void)0)
#endif
#if defined(__AVX__)
static inline void store_half_line(void *to, const void *line) {
    _mm256_storeu_ps((float *)to, _mm256_loadu_ps((const float *)line));
}
static inline void store_line(void *to, const void *line) {
    float *t = (float *)to;
    __m256 lower = _mm256_loadu_ps((const float *)line), upper = _mm256_loadu_ps((const float *)line + 8);
    _mm256_storeu_ps(t, lower);
    IN_ORDER;
    _mm256_storeu_ps(t + 8, upper);
}
#elif defined(__SSE2__) || defined(_M_X64)
static inline void store_half_line(void *to, const void *line) {
    float *t = (float *)to;
    __m128 lower = _mm_loadu_ps((const float *)line), upper = _mm_loadu_ps((const float *)line + 4);
    _mm_storeu_ps(t, lower);
    IN_ORDER;
    _mm_storeu_ps(t + 4, upper);
}
static inline void store_line(void *to, const void *line) {
    float *t = (float *)to;
    const float *l = (const float *)line;
    __m128 a = _mm_loadu_ps(l), b = _mm_loadu_ps(l + 4), c = _mm_loadu_ps(l + 8), d = _mm_loadu_ps(l + 12);
    _mm_storeu_ps(t, a);
    IN_ORDER;
    _mm_storeu_ps(t + 4, b);
    IN_ORDER;
    _mm_storeu_ps(t + 8, c);
    IN_ORDER;
    _mm_storeu_ps(t + 12, d);
}
#else
static inline void store_half_line(void *to, const void *line) { memcpy(to, line, 32); }
static inline void store_line(void *to, const void *line) { memcpy(to, line, 64); }
#endif

/* Which of 16 float32 are 0 (and not -0), a bit each, the first in the lowest: of a loop compilers make one bit after the
   other. NOTES_PAY (see notes.pxi) where it takes few instructions; with narrower vectors a backward takes 1.1 times as
   long. */
#ifdef __AVX2__
enum { NOTES_PAY = 1 };
static inline uint16_t zeros_of_line(const float *line) {
    const __m256i *v = (const __m256i *)line, zero = _mm256_setzero_si256();
    __m256i a = _mm256_cmpeq_epi32(_mm256_loadu_si256(v), zero), b = _mm256_cmpeq_epi32(_mm256_loadu_si256(v + 1), zero);
    return (uint16_t)(_mm256_movemask_ps(_mm256_castsi256_ps(a)) | _mm256_movemask_ps(_mm256_castsi256_ps(b)) << 8);
}
#else
enum { NOTES_PAY = 0 };
static inline uint16_t zeros_of_line(const float *line) {
    uint32_t value[16], zeros = 0;
    int k;
    memcpy(value, line, sizeof value);
    for (k = 0; k < 16; k++)
        zeros |= (uint32_t)(value[k] == 0) << k;
    return (uint16_t)zeros;
}
#endif

/* Stores and loads whose only use is to fill a processor's queues, so that it does not run so far ahead that its reads,
   what it has asked for and lines that go past the cache keep each other waiting: without them, x86-64-v3 on planes of
   56x56 takes 1.25 times as long for a training forward and 1.3 for a backward (Zen 4). Loads hold back more than stores,
   both together most; more of them take time of their own, first of all where caches hold the arrays. `longer` in a
   backward. With narrower vectors a line takes so many instructions that they only cost time. */
#ifdef __AVX__
static inline void hold_back(int longer) {
    volatile intptr_t line[4];
    IN_ORDER;
    line[0] = 0, line[1] = 0, line[2] = 0, line[3] = 0;
    (void)line[0], (void)line[1], (void)line[2], (void)line[3], (void)line[0], (void)line[1];
    if (longer)
        (void)line[2], (void)line[3], (void)line[0], (void)line[1];
    IN_ORDER;
}
#else
static inline void hold_back(int longer) { (void)longer; }
#endif

/* Ask for a line that will be read soon; or later, into a second-level cache: of such requests many more may be on their
   way at once. Any address will do. */
#if defined(__GNUC__)
#define prefetch_line(address) __builtin_prefetch(address)
#define prefetch_later(address) __builtin_prefetch(address, 0, 2)
#elif defined(_M_X64)
#define prefetch_line(address) _mm_prefetch((const char *)(address), _MM_HINT_T0)
#define prefetch_later(address) _mm_prefetch((const char *)(address), _MM_HINT_T1)
#else
#define prefetch_line(address) ((void)(address))
#define prefetch_later(address) ((void)(address))
#endif

/* What stood in *place; now `memory` does. No other thread gets the same. */
static inline void *exchange(void **place, void *memory) {
#if defined(__GNUC__)
    return __atomic_exchange_n(place, memory, __ATOMIC_ACQ_REL);
#else       /* lend() refuses before anything is put anywhere */
    void *before = *place;
    *place = memory;
    return before;
#endif
}

/* Let the system have memory whose values no one needs, all but its two ends, until it is written again: only then,
   and only if other memory was short, does it come as new. 0 where the system does not know that. */
#ifdef __linux__
#include <sys/mman.h>
#endif
static inline int lend(void *memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_FREE) && defined(__GNUC__)
    uintptr_t huge = (uintptr_t)1 << 21, begin = (uintptr_t)memory / huge * huge + huge;
    uintptr_t end = ((uintptr_t)memory + bytes) / huge * huge;      /* smaller parts of a huge page would break it up */
    return begin < end && madvise((void *)begin, end - begin, MADV_FREE) == 0;
#else
    (void)memory, (void)bytes;
    return 0;
#endif
}

#ifdef _OPENMP
#include <omp.h>
#endif

/* libgomp's pool does not survive a fork: the child's first parallel region would wait for threads that are gone. */
static inline void openmp_pause(void) {
#if FASTBN_OMP_PAUSE
    omp_pause_resource_all(omp_pause_soft);
#endif
}

static inline int openmp_max_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* The processors that OpenMP's threads are bound to, all together (OMP_PROC_BIND, OMP_PLACES); 0: they are not bound. The
   affinity of the thread that asks tells nothing then, since it is bound to one. */
static inline int openmp_bound_processors(void) {
#if defined(_OPENMP) && _OPENMP >= 201307
    return omp_get_proc_bind() == omp_proc_bind_false ? 0 : omp_get_num_procs();
#else
    return 0;
#endif
}

/* 0: serial build, 1: threads that do not survive a fork, 2: threads that do or that openmp_pause makes safe */
static inline int openmp_kind(void) {
#if defined(_OPENMP) && (FASTBN_OMP_PAUSE || defined(_MSC_VER) || defined(__clang__))
    return 2;
#elif defined(_OPENMP)
    return 1;
#else
    return 0;
#endif
}

static inline const char *compiler_name(void) {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#elif defined(_MSC_VER)
    return "MSVC";
#else
    return "unknown";
#endif
}

/* Whether CPU and operating system can run the x86-64-v3 build, if there is one (setup.py has asked the compiler):
   libgcc and compiler-rt ask CPUID and XGETBV. */
static inline int cpu_has_x86_64_v3(void) {
#if FASTBN_V3
    __builtin_cpu_init();
    return __builtin_cpu_supports("x86-64-v3") != 0;
#else
    return 0;
#endif
}

/* Whether the CPU is of a kind whose processors wait long for each line they stream: Intel's Xeons before Ice Lake. (A
   copy there, 2.5 GHz Cascade Lake, one thread: 12 GB/s with ordinary and 6 with streaming stores where the last-level
   cache holds both arrays, 6.2 and 5.1 where it does not.) */
static inline int cpu_streams_slowly(void) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(_MSC_VER)
    __builtin_cpu_init();
    if (__builtin_cpu_is("skylake-avx512"))
        return 1;
#if defined(__clang__) || __GNUC__ >= 11
    return __builtin_cpu_is("cascadelake") || __builtin_cpu_is("cooperlake");
#endif
#endif
    return 0;
}
#endif
