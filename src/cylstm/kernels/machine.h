/* What the time loop needs from the machine: instruction sets, the floating-point mode, memory and
 * the time. */
#ifndef CYLSTM_MACHINE_H
#define CYLSTM_MACHINE_H

#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

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
 * percent of it, so freed blocks wait for the next call, a bounded amount of them, the newest; large
 * ones lie on huge pages where the system has them. A lock that is taken is not waited for.
 *
 * CYLSTM_EXACT_MEMORY is a test build in which nothing is kept, every piece is an allocation of its
 * own size, and memory is NaN before its first and after its last use. */
#ifdef CYLSTM_EXACT_MEMORY
enum { EXACT_MEMORY = 1 };
static inline void *allocate(size_t *size) {
    void *found = NULL;
    if (posix_memalign(&found, 64, *size)) return NULL;
    return memset(found, 0xff, *size);
}
static inline void release(void *block, size_t size) {
    memset(block, 0xff, size);
    __asm__ volatile("" : : "r"(block) : "memory"); /* or the compiler drops what is not read */
    free(block);
}
static inline void forget_kept_blocks(void) {}
#else
enum { EXACT_MEMORY = 0 };
enum { KEPT_BLOCKS = 16, KEPT_BYTES = 64 << 20, KEPT_LEAST = 16 << 10 };
typedef struct {
    void *block;        /* NULL: an empty place */
    size_t size;
    uint64_t number;    /* the older, the smaller */
} Kept;
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static Kept kept[KEPT_BLOCKS];
static size_t kept_bytes = 0;

/* In a forked child: another thread may have held the lock, in the middle of a change. */
static inline void forget_kept_blocks(void) {
    memset(kept, 0, sizeof kept);
    kept_bytes = 0;
    pthread_mutex_init(&kept_lock, NULL);
}

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

/* The place that is empty, or whose block has waited longest. */
static inline Kept *next_place(int full) {
    Kept *best = NULL;
    for (int i = 0; i < KEPT_BLOCKS; i++) {
        if (!kept[i].block && !full) return &kept[i];
        if (kept[i].block && (!best || kept[i].number < best->number)) best = &kept[i];
    }
    return best;
}

static inline void release(void *block, size_t size) {
    static uint64_t number = 0;
    void *unwanted[KEPT_BLOCKS + 1] = {block};
    int n = 1;
    if (size >= KEPT_LEAST && size <= KEPT_BYTES / 2 && pthread_mutex_trylock(&kept_lock) == 0) {
        n = 0;
        for (Kept *old; kept_bytes + size > KEPT_BYTES && (old = next_place(1)); old->block = NULL) {
            unwanted[n++] = old->block;
            kept_bytes -= old->size;
        }
        Kept *place = next_place(0);
        if (place->block) {
            unwanted[n++] = place->block;
            kept_bytes -= place->size;
        }
        *place = (Kept){block, size, ++number};
        kept_bytes += size;
        pthread_mutex_unlock(&kept_lock);
    }
    while (n > 0) free(unwanted[--n]);
}
#endif

/* Whether this is the thread that Python runs signal handlers in. */
static inline int in_main_thread(void) {
#ifdef __linux__
    return syscall(SYS_gettid) == getpid();
#else
    return 1;
#endif
}

/* Processors that this thread may use, or 0 if that is not known. */
static inline int affinity_cpus(void) {
#ifdef __linux__
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
    return 0;
}

static inline double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif
