/* Many read, or one writes: calls read parameters where they are, `assign` writes them there.
 *
 * One word: the forks of this process when it was last used, whether there is a writer, and the
 * number of readers. A writer comes first: once it has said so nobody begins to read, and it waits
 * for those that do. Whoever reads or writes runs no Python code until it has ended, so nobody waits
 * for itself or for ever. Waiting is done without the GIL. A thread that fork() has left in the
 * parent will never end here, so the first to come in a child begins anew.
 */
#ifndef CYLSTM_GUARD_H
#define CYLSTM_GUARD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#include "machine.h"

typedef _Atomic uint64_t Guard;

#define GUARD_WRITER ((uint64_t)1 << 32)
#define GUARD_FORKS (~(uint64_t)0 << 33)
#define GUARD_READERS (GUARD_WRITER - 1)

static _Atomic uint64_t guard_forks = 0;
static void guard_forked(void) { atomic_fetch_add(&guard_forks, (uint64_t)1 << 33); }
static inline void guard_watch_forks(void) { pthread_atfork(NULL, NULL, guard_forked); }

/* The word, without what threads of the parent have left in it. */
static inline uint64_t guard_here(uint64_t word) {
    const uint64_t forks = atomic_load(&guard_forks);
    return (word & GUARD_FORKS) == forks ? word : forks;
}

static inline void guard_wait(int *tries) {
    const struct timespec moment = {0, 50000};
    if ((*tries)++ < 1000) {
        CPU_PAUSE();
    } else {
        *tries = 1000;
        nanosleep(&moment, NULL);
    }
}

/* Add to the word as soon as there is no writer. */
static inline void guard_enter(Guard *guard, uint64_t more) {
    uint64_t word = atomic_load(guard);
    for (int tries = 0;;) {
        const uint64_t here = guard_here(word);
        if (!(here & GUARD_WRITER)) {
            if (atomic_compare_exchange_weak(guard, &word, here + more)) return;
        } else {
            guard_wait(&tries);
            word = atomic_load(guard);
        }
    }
}

static inline void begin_read(Guard *guard) { guard_enter(guard, 1); }
static inline void end_read(Guard *guard) { atomic_fetch_sub(guard, 1); }
static inline void begin_write(Guard *guard) {
    guard_enter(guard, GUARD_WRITER);
    for (int tries = 0; atomic_load(guard) & GUARD_READERS;) guard_wait(&tries);
}
static inline void end_write(Guard *guard) { atomic_fetch_sub(guard, GUARD_WRITER); }

#endif
