#include "chaos.h"

#ifdef CYLSTM_CHAOS
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#define CHAOS_NAME(point) #point,
static const char *const chaos_names[] = {CHAOS_ALL(CHAOS_NAME)};
static _Atomic uint64_t chaos_seed = 0; /* 0: no delays */
static _Atomic int64_t chaos_counts[CHAOS_POINTS];
static _Atomic uint64_t chaos_threads = 0;
static _Thread_local uint64_t chaos_thread = 0, chaos_times = 0, chaos_last = 0;

static uint64_t chaos_mix(uint64_t x) { /* splitmix64's finaliser */
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static void chaos_wait(double seconds) {
    struct timespec span = {0, (long)(1e9 * seconds)};
    nanosleep(&span, 0);
}

void chaos_handover(int point) {
    /* Relaxed, all of it: it must not order what it is to disorder. */
    const uint64_t seed = atomic_load_explicit(&chaos_seed, memory_order_relaxed);
    atomic_fetch_add_explicit(&chaos_counts[point], 1, memory_order_relaxed);
    if (seed == 0) return;
    if (chaos_thread == 0)
        chaos_thread = atomic_fetch_add_explicit(&chaos_threads, 1, memory_order_relaxed) + 1;
    if (chaos_last != seed) chaos_times = 0;
    chaos_last = seed;
    /* A seed favours some points, so that each of them is the slowest at times. */
    const uint64_t liking = chaos_mix(seed * 64 + (uint64_t)point) % 8;
    const uint64_t draw = chaos_mix(seed + chaos_mix(chaos_thread * 1000003 + chaos_times++ * 64 +
                                                     (uint64_t)point));
    const uint64_t dice = draw % 1024, often = liking == 0 ? 256 : liking < 3 ? 32 : 4;
    if (dice < often / 64) chaos_wait(20e-3 * (double)(draw >> 32) / 4294967296.0);
    else if (dice < often / 8) chaos_wait(2e-3 * (double)(draw >> 32) / 4294967296.0);
    else if (dice < often / 2) chaos_wait(100e-6 * (double)(draw >> 32) / 4294967296.0);
    else if (dice < often) sched_yield();
}
void chaos(uint64_t seed) {
    atomic_store_explicit(&chaos_seed, seed, memory_order_relaxed);
}
const char *chaos_name(int point) { return chaos_names[point]; }
long chaos_count(int point) {
    return (long)atomic_load_explicit(&chaos_counts[point], memory_order_relaxed);
}
#endif
