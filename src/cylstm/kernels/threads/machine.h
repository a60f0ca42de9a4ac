/* What the time loop needs from the machine: instruction sets, the floating-point mode, the time. */
#ifndef CYLSTM_MACHINE_H
#define CYLSTM_MACHINE_H

#include <sched.h>
#include <stdint.h>
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

/* What a processor and its operating system have, one bit each. */
enum { CPU_AVX2 = 1, CPU_AVX512 = 2, CPU_NEON = 4 };

/* Instruction sets that kernels are built for, best first, and what they need: the names of setup.py. */
#define ISA_LEVELS(X)                                                                              \
    X("avx512", CPU_AVX2 | CPU_AVX512) X("avx2", CPU_AVX2) X("neon", CPU_NEON) X("base", 0)
#define ISA_NAME(name, needs) name,
#define ISA_NEEDS(name, needs) needs,
static const char *const isa_names[] = {ISA_LEVELS(ISA_NAME)};
static const unsigned isa_needs[] = {ISA_LEVELS(ISA_NEEDS)};
enum { ISA_COUNT = sizeof isa_needs / sizeof *isa_needs };

#if defined(__x86_64__)
#include <xmmintrin.h>
#define CPU_PAUSE() _mm_pause()
/* The compiler's detection asks CPUID for the processor and XGETBV for the operating system. */
static inline unsigned cpu_features(void) {
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return (avx2 ? CPU_AVX2 : 0) | (avx512 ? CPU_AVX512 : 0);
}
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
static inline unsigned cpu_features(void) { return CPU_NEON; }
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
static inline unsigned cpu_features(void) { return 0; }
typedef int FpMode;
static inline FpMode fp_flush(void) { return 0; }
static inline void fp_restore(FpMode before) { (void)before; }
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
