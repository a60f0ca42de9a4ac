/* Threads of a call: helpers that are hired for one job, and a team's meetings and claims.
 *
 * An OpenMP region ends only when all of its threads have come, so a thread that another process
 * keeps from running holds up the rest by a time slice. Here a job goes on with the helpers that
 * are there: one that has not begun is not waited for, and a team that can do without a member that
 * does not come to a meeting leaves it behind.
 */
#ifndef CYLSTM_TEAM_H
#define CYLSTM_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include "machine.h"

/* Work for a leader, which calls work(job, 0) itself, and for helpers. It must stay in memory until
 * all of them have left. */
typedef struct Job {
    void (*work)(struct Job *job, ptrdiff_t rank);
    ptrdiff_t hired;                        /* helpers it has been posted to and not cancelled for */
    _Alignas(64) _Atomic ptrdiff_t entered; /* helpers that have begun: ranks 1, 2, ... */
    _Atomic ptrdiff_t left;                 /* those that have ended */
    _Atomic ptrdiff_t size;                 /* of the team, if it has to assemble; 0 until it has */
} Job;

/* A helper spins this long for its next job before it sleeps, longer if it has missed one; a leader
 * waits this long for a helper that was there last time and wakes up as fast. */
#define SPIN_SECONDS 100e-6
#define SPIN_AGAIN_SECONDS 2e-3
#define ENTRY_SECONDS 100e-6
enum { MOST_HELPERS = 255, SPINS = 10000, SPINS_UNTIMED = 500 };

typedef struct {
    _Alignas(64) _Atomic(Job *) post;   /* a job to begin; the helper or the leader takes it away */
    _Atomic(Job *) job;                 /* the one it is at or has been sent */
    _Atomic int taken;                  /* by a leader, until it leaves or is cancelled */
    _Atomic int absent;                 /* was not there when needed, not seen since */
    _Atomic int asleep;
    _Atomic int slow;                   /* to wake up, the last time */
    double woken;                       /* when, in seconds() */
    _Atomic int leader_cpu;             /* which processor its leader runs on */
    pthread_mutex_t lock;
    pthread_cond_t wake;
} Helper;

static Helper helpers[MOST_HELPERS];
static _Atomic int n_helpers = 0;
static pthread_mutex_t helpers_lock = PTHREAD_MUTEX_INITIALIZER;

/* After fork() the child has none of them. */
static void forget_helpers(void) {
    atomic_store(&n_helpers, 0);
    pthread_mutex_init(&helpers_lock, NULL);
}
static inline void watch_forks(void) { pthread_atfork(NULL, NULL, forget_helpers); }

/* Spin briefly, then let others run: beside another process that may cost the rest of this time
 * slice and a whole one of its own, so it is worth waiting a few hundred microseconds first. */
static inline void pause_or_yield(ptrdiff_t spins) {
    if (spins < SPINS) CPU_PAUSE();
    else sched_yield();
}

#ifdef __linux__
static inline int this_cpu(void) { return sched_getcpu(); }
/* Where all processors are busy, Linux wakes a thread on that of the one that wakes it, and keeps
 * the two together. */
static void move_off(int cpu) {
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    CPU_CLR(cpu, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others)) return;
    sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
static inline int this_cpu(void) { return -1; }
static void move_off(int cpu) { (void)cpu; }
#endif

/* The next job, or NULL after sleeping. */
static Job *next_job(Helper *me) {
    double began = 0, spin = SPIN_SECONDS;
    for (ptrdiff_t spins = 0;; spins++) {
        if (atomic_load_explicit(&me->absent, memory_order_relaxed)) {
            atomic_store(&me->absent, 0);
            spin = SPIN_AGAIN_SECONDS;
        }
        const int cpu = this_cpu();
        if (cpu >= 0 && cpu == atomic_load_explicit(&me->leader_cpu, memory_order_relaxed))
            move_off(cpu);
        if (atomic_load_explicit(&me->post, memory_order_relaxed)) {
            Job *job = atomic_exchange(&me->post, NULL);
            if (job) return job;
        }
        CPU_PAUSE();
        if (spins % 64) continue;
        if (began == 0) began = seconds();
        else if (seconds() - began > spin) break;
    }
    pthread_mutex_lock(&me->lock);
    atomic_store(&me->asleep, 1);
    if (!atomic_load(&me->post)) {
        pthread_cond_wait(&me->wake, &me->lock);
        atomic_store(&me->slow, seconds() - me->woken > ENTRY_SECONDS);
    }
    atomic_store(&me->asleep, 0);
    pthread_mutex_unlock(&me->lock);
    return NULL;
}

static void *helper_main(void *helper) {
    Helper *me = helper;
    for (;;) {
        Job *job = next_job(me);
        if (!job) continue;
        job->work(job, atomic_fetch_add(&job->entered, 1) + 1);
        atomic_store(&me->job, NULL);
        atomic_store(&me->taken, 0);
        atomic_fetch_add(&job->left, 1); /* the last that is done with the job's memory */
    }
    return NULL;
}

static void post(Helper *h, Job *job) {
    atomic_store(&h->job, job);
    atomic_store(&h->leader_cpu, this_cpu());
    atomic_store(&h->post, job);
    if (atomic_load(&h->asleep)) {
        pthread_mutex_lock(&h->lock);
        h->woken = seconds();
        pthread_cond_signal(&h->wake);
        pthread_mutex_unlock(&h->lock);
    }
}

/* One more helper; 0 if there cannot be. Signals are for Python's threads. */
static int add_helper(Job *job) {
    int made = 0;
    pthread_mutex_lock(&helpers_lock);
    const int n = atomic_load(&n_helpers);
    if (n < MOST_HELPERS) {
        Helper *h = &helpers[n];
        pthread_t thread;
        sigset_t all, before;
        pthread_mutex_init(&h->lock, NULL);
        pthread_cond_init(&h->wake, NULL);
        atomic_store(&h->absent, 0);
        atomic_store(&h->asleep, 0);
        atomic_store(&h->slow, 0);
        atomic_store(&h->taken, 1);
        atomic_store(&h->job, job);
        atomic_store(&h->leader_cpu, -1);
        atomic_store(&h->post, job);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        made = pthread_create(&thread, NULL, helper_main, h) == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (made) {
            pthread_detach(thread);
            atomic_store(&n_helpers, n + 1);
        }
    }
    pthread_mutex_unlock(&helpers_lock);
    return made;
}

/* Post the job to up to `wanted` helpers; how many of them can be expected soon. Those that are
 * still on their way from a job that has left them behind count as wanted, but not as hired. */
static inline ptrdiff_t hire(Job *job, ptrdiff_t wanted) {
    const int n = atomic_load(&n_helpers);
    ptrdiff_t expected = 0;
    job->hired = 0;
    atomic_init(&job->entered, 0);
    atomic_init(&job->left, 0);
    atomic_init(&job->size, 0);
    for (int i = 0; i < n && wanted > 0; i++) {
        Helper *h = &helpers[i];
        int free = 0;
        if (atomic_compare_exchange_strong(&h->taken, &free, 1)) {
            expected += !atomic_load(&h->absent) &&
                        !(atomic_load(&h->asleep) && atomic_load(&h->slow));
            post(h, job);
            job->hired++;
            wanted--;
        } else if (atomic_load(&h->absent)) {
            wanted--;
        }
    }
    for (; wanted > 0 && add_helper(job); wanted--, expected++) job->hired++;
    return expected;
}

/* Take the job back from those that have not begun. */
static inline void cancel(Job *job) {
    const int n = atomic_load(&n_helpers);
    for (int i = 0; i < n && atomic_load(&job->entered) < job->hired; i++) {
        Helper *h = &helpers[i];
        Job *posted = job;
        if (atomic_load(&h->job) != job) continue;
        if (!atomic_compare_exchange_strong(&h->post, &posted, NULL)) continue;
        job->hired--;
        atomic_store(&h->absent, 1);
        atomic_store(&h->job, NULL);
        atomic_store(&h->taken, 0);
    }
}

/* Wait for those that can be expected, and go on without the others. */
static inline void assemble(Job *job, ptrdiff_t expected) {
    double until = 0;
    for (ptrdiff_t spins = 0; atomic_load(&job->entered) < expected; spins++) {
        pause_or_yield(spins);
        if (spins % 64) continue;
        if (until == 0) until = seconds() + ENTRY_SECONDS;
        else if (seconds() > until) break;
    }
    cancel(job);
    atomic_store(&job->size, job->hired + 1);
}

static inline ptrdiff_t assembled(Job *job) {
    for (ptrdiff_t spins = 0; atomic_load(&job->size) == 0; spins++) pause_or_yield(spins);
    return atomic_load(&job->size);
}

static inline int all_left(Job *job) { return atomic_load(&job->left) == job->hired; }

/* The leader has done its part: wait for the helpers that have begun, unless they are left behind.
 * Whether all of them have left. */
static inline int dismiss(Job *job, int leave_behind) {
    cancel(job);
    if (leave_behind) {
        const int n = atomic_load(&n_helpers);
        for (int i = 0; i < n; i++)
            if (atomic_load(&helpers[i].job) == job) atomic_store(&helpers[i].absent, 1);
    } else {
        for (ptrdiff_t spins = 0; !all_left(job); spins++) pause_or_yield(spins);
    }
    return all_left(job);
}

/* A count of arrivals at meetings and one of claimed work, each on its own cache line. */
typedef struct {
    _Alignas(64) _Atomic ptrdiff_t arrived;
    _Alignas(64) _Atomic ptrdiff_t claimed;
} Team;

static inline void team_init(Team *team) {
    atomic_init(&team->arrived, 0);
    atomic_init(&team->claimed, 0);
}

/* How a meeting went: as it should; a thread came so late that it must have lost its processor; this
 * one, the leader, has stopped waiting; or the leader has, and this one may go. */
typedef enum { MET, LATE, GIVEN_UP, DISMISSED } Meeting;
#define DISSOLVED (PTRDIFF_MIN / 2)

/* Wait for all `size` threads; after `patience` seconds one that may `give_up` does. Arrivals are
 * never counted back, so that a meeting that has just been complete cannot be given up. */
static inline Meeting team_meet(Team *team, ptrdiff_t size, double patience, int give_up) {
    ptrdiff_t arrived = atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1;
    const ptrdiff_t all = (arrived + size - 1) / size * size;
    double began = 0;
    for (ptrdiff_t spins = 0;; spins++) {
        if (arrived < 0) return DISMISSED;
        if (arrived >= all) break;
        pause_or_yield(spins);
        if (spins == SPINS_UNTIMED) began = seconds();
        if (spins > SPINS_UNTIMED && give_up && seconds() - began > patience &&
            atomic_compare_exchange_strong(&team->arrived, &arrived, DISSOLVED))
            return GIVEN_UP;
        arrived = atomic_load_explicit(&team->arrived, memory_order_acquire);
    }
    return began > 0 && seconds() - began > patience ? LATE : MET;
}

/* Work that is done in stints, one after the other but by any thread. */
typedef struct {
    _Alignas(64) _Atomic int taken;
    _Atomic ptrdiff_t done;
} Piece;

/* The piece that is furthest behind of those no thread is at, so that one that loses its processor
 * holds up a stint; waits while other threads are at all that is left; -1 after the last. */
static inline ptrdiff_t take_piece(Piece *pieces, ptrdiff_t n, ptrdiff_t stints) {
    for (ptrdiff_t spins = 0;; spins++) {
        ptrdiff_t best = -1, least = stints, left = 0;
        for (ptrdiff_t i = 0; i < n; i++) {
            const ptrdiff_t done = atomic_load(&pieces[i].done);
            left += done < stints;
            if (done >= least || atomic_load(&pieces[i].taken)) continue;
            best = i;
            least = done;
        }
        if (left == 0) return -1;
        int free = 0;
        if (best >= 0 && atomic_compare_exchange_strong(&pieces[best].taken, &free, 1)) {
            if (atomic_load(&pieces[best].done) < stints) return best;
            atomic_store(&pieces[best].taken, 0);
        } else {
            pause_or_yield(spins);
        }
    }
}
static inline ptrdiff_t stint_of(Piece *piece) { return atomic_load(&piece->done); }
static inline void leave_piece(Piece *piece) {
    atomic_fetch_add(&piece->done, 1);
    atomic_store(&piece->taken, 0);
}

/* The next piece of work nobody has taken. */
static inline ptrdiff_t team_claim(Team *team) {
    return atomic_fetch_add_explicit(&team->claimed, 1, memory_order_relaxed);
}

#endif
