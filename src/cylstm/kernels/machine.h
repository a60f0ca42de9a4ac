/* What the time loop needs from the machine: instruction sets, the floating-point mode, memory and
 * the time. */
#ifndef CYLSTM_MACHINE_H
#define CYLSTM_MACHINE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#ifdef _OPENMP
#include <omp.h>
enum { HAS_OPENMP = 1 };
#else
enum { HAS_OPENMP = 0 };
static inline int omp_get_max_threads(void) { return 1; }
#endif

#if defined(__x86_64__)
#include <xmmintrin.h>
#define CPU_PAUSE() _mm_pause()
/* The compiler's detection asks CPUID for the processor and XGETBV for the operating system. */
static inline int cpu_has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static inline int cpu_has_avx512(void) {
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}
static inline int cpu_has_neon(void) { return 0; }
/* Flush-to-zero and denormals-are-zero: decayed gradients are denormals, at 5 times the cost. */
typedef unsigned FpMode;
static inline FpMode fp_flush(void) {
    FpMode before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}
static inline void fp_restore(FpMode before) {
    /* Sticky exception flags raised inside belong to nobody; the mode is as it was. */
    _mm_setcsr(before);
}
#elif defined(__aarch64__)
#define CPU_PAUSE() __asm__ __volatile__("yield")
static inline int cpu_has_avx2(void) { return 0; }
static inline int cpu_has_avx512(void) { return 0; }
static inline int cpu_has_neon(void) { return 1; }
typedef uint64_t FpMode; /* the mode in the lower half, the sticky exception flags in the upper one */
static inline FpMode fp_flush(void) {
    FpMode mode, flags;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(mode));
    __asm__ __volatile__("mrs %0, fpsr" : "=r"(flags));
    __asm__ __volatile__("msr fpcr, %0" : : "r"(mode | (1u << 24)));
    return mode | flags << 32;
}
static inline void fp_restore(FpMode before) {
    __asm__ __volatile__("msr fpcr, %0" : : "r"(before & UINT32_MAX));
    __asm__ __volatile__("msr fpsr, %0" : : "r"(before >> 32));
}
#else
#define CPU_PAUSE() ((void)0)
static inline int cpu_has_avx2(void) { return 0; }
static inline int cpu_has_avx512(void) { return 0; }
static inline int cpu_has_neon(void) { return 0; }
typedef int FpMode;
static inline FpMode fp_flush(void) { return 0; }
static inline void fp_restore(FpMode before) { (void)before; }
#endif

/* Memory of calls. A training step allocates and frees megabytes, and new pages cost some ten
 * percent of it, so freed blocks wait for the next call, a bounded amount of them; large ones lie on
 * huge pages where the system has them. A lock that is taken (or was, when the process forked) is
 * not waited for. */
enum { KEPT_BLOCKS = 16, KEPT_BYTES = 64 << 20, KEPT_LEAST = 16 << 10 };
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static struct { void *block; size_t size; } kept[KEPT_BLOCKS];
static size_t kept_bytes = 0;

/* At least *size bytes on a cache line, or NULL; *size becomes what release() must be told. */
static inline void *allocate(size_t *size) {
    const size_t huge = (size_t)2 << 20;
    void *found = NULL;
    if (*size >= KEPT_LEAST && pthread_mutex_trylock(&kept_lock) == 0) {
        for (int i = 0; i < KEPT_BLOCKS && !found; i++) {
            if (!kept[i].block || kept[i].size < *size || kept[i].size / 2 > *size) continue;
            found = kept[i].block;
            *size = kept[i].size;
            kept_bytes -= *size;
            kept[i].block = NULL;
        }
        pthread_mutex_unlock(&kept_lock);
    }
    if (found || *size < 2 * huge) return found ? found : aligned_alloc(64, *size);
    *size = (*size + huge - 1) & ~(huge - 1);
    found = aligned_alloc(huge, *size);
#ifdef MADV_HUGEPAGE
    if (found) (void)madvise(found, *size, MADV_HUGEPAGE);
#endif
    return found;
}

static inline void release(void *block, size_t size) {
    static int next = 0;
    void *oldest = block;
    if (size >= KEPT_LEAST && size <= KEPT_BYTES / 2 && pthread_mutex_trylock(&kept_lock) == 0) {
        int slot = next;
        for (int i = 0; i < KEPT_BLOCKS && kept[slot].block; i++) slot = (next + i) % KEPT_BLOCKS;
        oldest = kept[slot].block;
        if (oldest) {
            kept_bytes -= kept[slot].size;
            next = (slot + 1) % KEPT_BLOCKS;
        }
        kept[slot].block = block;
        kept[slot].size = size;
        kept_bytes += size;
        for (int i = 1; kept_bytes > KEPT_BYTES; i++) {
            const int old = (slot + i) % KEPT_BLOCKS;
            if (!kept[old].block) continue;
            free(kept[old].block);
            kept[old].block = NULL;
            kept_bytes -= kept[old].size;
        }
        pthread_mutex_unlock(&kept_lock);
    }
    free(oldest);
}

static inline double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
