/* What the time loop needs from the machine: instruction sets, the floating-point mode, and a team
 * of threads that meets, claims work and survives a fork. */
#ifndef CYLSTM_MACHINE_H
#define CYLSTM_MACHINE_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
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
static inline int omp_get_num_threads(void) { return 1; }
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
typedef uint64_t FpMode;
static inline FpMode fp_flush(void) {
    FpMode before;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(before));
    __asm__ __volatile__("msr fpcr, %0" : : "r"(before | (1u << 24)));
    return before;
}
static inline void fp_restore(FpMode before) {
    __asm__ __volatile__("msr fpcr, %0" : : "r"(before));
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

/* A meeting point and a counter of claimed work, each on its own cache line. */
typedef struct {
    _Alignas(64) _Atomic ptrdiff_t arrived;
    _Alignas(64) _Atomic ptrdiff_t round;
    _Alignas(64) _Atomic ptrdiff_t claimed;
} Team;

static inline void team_init(Team *team) {
    atomic_init(&team->arrived, 0);
    atomic_init(&team->round, 0);
    atomic_init(&team->claimed, 0);
}

/* Large blocks on huge pages where the system has them: a tape is touched once, and the page faults
 * of small pages cost some percent of a training step. */
static inline void *allocate(size_t size) {
    const size_t huge = (size_t)2 << 20;
    if (size < 2 * huge) return aligned_alloc(64, size);
    size = (size + huge - 1) & ~(huge - 1);
    void *block = aligned_alloc(huge, size);
#ifdef MADV_HUGEPAGE
    if (block) (void)madvise(block, size, MADV_HUGEPAGE);
#endif
    return block;
}

static inline double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Wait for all `size` threads; spin briefly, then let others run. Whether this took longer than
 * `patience` seconds: then some thread of the team has lost its processor. */
static inline int team_meet(Team *team, ptrdiff_t size, double patience) {
    const ptrdiff_t round = atomic_load_explicit(&team->round, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->round, round + 1, memory_order_release);
        return 0;
    }
    double began = 0;
    for (ptrdiff_t spins = 0;
         atomic_load_explicit(&team->round, memory_order_acquire) == round; spins++) {
        if (spins < 2000) {
            CPU_PAUSE();
        } else {
            if (spins == 2000) began = seconds();
            sched_yield();
        }
    }
    return began > 0 && seconds() - began > patience;
}

/* The next piece of work nobody has taken. */
static inline ptrdiff_t team_claim(Team *team) {
    return atomic_fetch_add_explicit(&team->claimed, 1, memory_order_relaxed);
}

/* OpenMP runtimes keep their idle threads with the thread that started them; after fork() those
 * threads are gone and a new region would wait for them for ever. The forking thread of a child
 * therefore runs serially; other threads of the child start afresh. */
static _Thread_local int forked_here = 0;
static void in_child(void) { forked_here = 1; }
static inline void watch_forks(void) { pthread_atfork(NULL, NULL, in_child); }
static inline int was_forked(void) { return forked_here; }

#endif
