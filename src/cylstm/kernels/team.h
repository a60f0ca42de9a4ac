/* Threads of a call: helpers that are hired for one job, and a team's meetings and claims.
 *
 * An OpenMP region ends only when all of its threads have come, so a thread that another process
 * keeps from running holds up the rest by a time slice. Here a job goes on with the helpers that
 * are there: one that has not begun is not waited for, and a team that can do without a member that
 * does not come to a meeting leaves it behind.
 *
 * THE PROTOCOL
 *
 * Who owns what. A *job* is work for its leader, a thread of Python's, and for helpers. It lies,
 * with all memory that its work touches, in a Call. `job_begin` takes a reference to that call
 * before anyone is hired; this reference belongs to the job until the last helper has left. A
 * *helper* is a thread of the process that never ends; it owns a job from taking it out of `post`
 * until it adds 1 to `left`, its last access.
 *
 * Transitions of a helper, each one atomic operation on one word:
 *     free    -> taken     a leader     taken: 0 -> 1             of several leaders one succeeds
 *     taken   -> posted    that leader  post: NULL -> job
 *     posted  -> at work   the helper   post: job -> NULL         of these two one succeeds,
 *     posted  -> free      that leader  post: job -> NULL, then taken: 1 -> 0      and only one
 *     at work -> free      the helper   taken: 1 -> 0, then left: n -> n + 1
 * Transitions of a job, all by its leader but the last:
 *     IDLE -> RUNNING      job_begin
 *     RUNNING -> IDLE      dismiss, where left == hired
 *     RUNNING -> ABANDONED dismiss, where left < hired
 *     ABANDONED -> freed   job_reap, by any thread, where left == hired
 *
 * Why no schedule breaks it.
 * 1. Only an IDLE job is hired for, so counters are never reset under a helper. An ABANDONED one
 *    goes on with its leader alone, in memory that no helper of it touches, and never writes what
 *    a helper reads.
 * 2. `hired` is the number of helpers at work or done once nobody is posted any more; `dismiss`
 *    takes back every letter before it looks. From then on it does not change, and `left` reaches
 *    it after the last access of the last helper.
 * 3. Nothing between job_begin and the end of dismiss can fail, allocates, runs Python code or
 *    takes the GIL: the exception of a signal handler comes when no helper is at work, or when the
 *    job has been abandoned and is on the list that keeps it.
 * 4. Locks are held for a few lines of C only, in which nothing blocks, and never together with
 *    waiting for the GIL. References are dropped when no lock is held.
 * 5. fork() copies one thread, which is in none of these lines (prepare takes the lock) and leads
 *    no job with helpers at work (3). In the child there are no helpers, and jobs left to them are
 *    done.
 */
#ifndef CYLSTM_TEAM_H
#define CYLSTM_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include "chaos.h"
#include "machine.h"

typedef enum { IDLE, RUNNING, ABANDONED } JobState;

/* Work for a leader, which calls work(job, 0) itself, and for helpers. */
typedef struct Job {
    void (*work)(struct Job *job, ptrdiff_t rank);
    JobState state;                         /* for its leader */
    ptrdiff_t hired;                        /* helpers it was posted to, less those cancelled */
    void *owner;                            /* what must stay alive until the last has left */
    struct Job *next;                       /* on the list of abandoned jobs */
    _Alignas(64) _Atomic ptrdiff_t entered; /* helpers that have begun: ranks 1, 2, ... */
    _Atomic ptrdiff_t left;                 /* those that have ended */
    _Atomic ptrdiff_t size;                 /* of the team, if it has to assemble; 0 until it has */
} Job;

/* A helper spins this long for its next job before it sleeps, longer if it has missed one; a leader
 * waits this long for a helper that was there last time and wakes up as fast. */
#define SPIN_SECONDS 100e-6
#define SPIN_AGAIN_SECONDS 2e-3
#ifdef CYLSTM_CHAOS
#define ENTRY_SECONDS 2e-3 /* also on a busy machine helpers come, and are given up later */
#else
#define ENTRY_SECONDS 100e-6
#endif
/* How often a leader looks whether the processors it may use have changed. */
#define AFFINITY_SECONDS 10e-3
enum { MOST_HELPERS = 255, SPINS = 10000, SPINS_UNTIMED = 500 };

typedef struct {
    _Alignas(64) _Atomic(Job *) post;   /* a job to begin; the helper or the leader takes it away */
    _Atomic int taken;                  /* by a leader, until it leaves or is cancelled */
    /* Hints, on which only speed depends */
    _Atomic(Job *) job;                 /* the one it is at or has been sent */
    _Atomic int absent;                 /* was not there when needed, not seen since */
    _Atomic int slow;                   /* to wake up, the last time */
    _Atomic int leader_cpu;             /* which processor its leader runs on */
    _Atomic double woken;               /* when, in seconds() */
    /* Sleep; `asleep` is written under the lock */
    _Atomic int asleep;
    pthread_mutex_t lock;
    pthread_cond_t wake;
} Helper;

static Helper helpers[MOST_HELPERS];
static _Atomic int n_helpers = 0;
static Job *abandoned = NULL;
/* Guards the making of helpers, the list of abandoned jobs and `affinity`. */
static pthread_mutex_t threads_lock = PTHREAD_MUTEX_INITIALIZER;

/* Whether anything is on the list, without the lock. */
static _Atomic int n_abandoned = 0;

/* How often this process has been forked, and one. */
static _Atomic int fork_generation = 1;

static void before_fork(void) { pthread_mutex_lock(&threads_lock); }
static void after_fork(void) { pthread_mutex_unlock(&threads_lock); }
static void in_child(void) {
    atomic_fetch_add(&fork_generation, 1);
    atomic_store(&n_helpers, 0);
    for (Job *job = abandoned; job; job = job->next) atomic_store(&job->left, job->hired);
    pthread_mutex_init(&threads_lock, NULL);
    forget_kept_blocks();
}
static inline void watch_forks(void) { pthread_atfork(before_fork, after_fork, in_child); }

/* Spin briefly, then let others run: next to another process that may cost the rest of this time
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

/* The processors that the last leader may use, which its helpers use as well. */
static cpu_set_t affinity;
static _Atomic unsigned affinity_version = 0;
static _Atomic double affinity_seen = 0;
static void note_affinity(void) {
    const double now = seconds();
    cpu_set_t mine;
    if (now - atomic_load_explicit(&affinity_seen, memory_order_relaxed) < AFFINITY_SECONDS) return;
    atomic_store_explicit(&affinity_seen, now, memory_order_relaxed);
    if (sched_getaffinity(0, sizeof mine, &mine)) return;
    pthread_mutex_lock(&threads_lock);
    if (atomic_load(&affinity_version) == 0 || !CPU_EQUAL(&mine, &affinity)) {
        affinity = mine;
        atomic_fetch_add(&affinity_version, 1);
    }
    pthread_mutex_unlock(&threads_lock);
}
static void follow_affinity(unsigned *version) {
    cpu_set_t wanted;
    if (*version == atomic_load_explicit(&affinity_version, memory_order_relaxed)) return;
    pthread_mutex_lock(&threads_lock);
    *version = atomic_load(&affinity_version);
    wanted = affinity;
    pthread_mutex_unlock(&threads_lock);
    sched_setaffinity(0, sizeof wanted, &wanted);
}
#else
static inline int this_cpu(void) { return -1; }
static void move_off(int cpu) { (void)cpu; }
static void note_affinity(void) {}
static void follow_affinity(unsigned *version) { (void)version; }
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
            HANDOVER(TAKE);
            Job *job = atomic_exchange(&me->post, NULL);
            if (job) return job;
        }
        CPU_PAUSE();
        if (spins % 64) continue;
        if (began == 0) began = seconds();
        else if (seconds() - began > spin) break;
    }
    HANDOVER(SLEEP);
    pthread_mutex_lock(&me->lock);
    atomic_store(&me->asleep, 1);
    if (!atomic_load(&me->post)) {
        pthread_cond_wait(&me->wake, &me->lock);
        atomic_store(&me->slow, seconds() - atomic_load(&me->woken) > ENTRY_SECONDS);
    }
    atomic_store(&me->asleep, 0);
    pthread_mutex_unlock(&me->lock);
    return NULL;
}

static void *helper_main(void *helper) {
    Helper *me = helper;
    unsigned version = 0;
    for (;;) {
        Job *job = next_job(me);
        if (!job) continue;
        follow_affinity(&version);
        HANDOVER(ENTER);
        job->work(job, atomic_fetch_add(&job->entered, 1) + 1);
        HANDOVER(LEAVE);
        atomic_store(&me->job, NULL);
        atomic_store(&me->taken, 0);
        HANDOVER(LEFT);
        atomic_fetch_add(&job->left, 1); /* its last access */
    }
    return NULL;
}

static void post(Helper *h, Job *job) {
    atomic_store(&h->job, job);
    atomic_store(&h->leader_cpu, this_cpu());
    HANDOVER(POST);
    atomic_store(&h->post, job);
    if (atomic_load(&h->asleep)) {
        pthread_mutex_lock(&h->lock);
        atomic_store(&h->woken, seconds());
        pthread_cond_signal(&h->wake);
        pthread_mutex_unlock(&h->lock);
    }
}

/* One more helper; 0 if there cannot be. Signals are for Python's threads, but for those that a
 * fault of the helper's own raises. */
static int add_helper(Job *job) {
    int made = 0;
    pthread_mutex_lock(&threads_lock);
    const int n = atomic_load(&n_helpers);
    if (n < MOST_HELPERS) {
        static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
        Helper *h = &helpers[n];
        pthread_t thread;
        sigset_t others, before;
        pthread_mutex_init(&h->lock, NULL);
        pthread_cond_init(&h->wake, NULL);
        atomic_store(&h->absent, 0);
        atomic_store(&h->asleep, 0);
        atomic_store(&h->slow, 0);
        atomic_store(&h->taken, 1);
        atomic_store(&h->job, job);
        atomic_store(&h->leader_cpu, -1);
        atomic_store(&h->post, job);
        sigfillset(&others);
        for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&others, own[i]);
        pthread_sigmask(SIG_SETMASK, &others, &before);
        made = pthread_create(&thread, NULL, helper_main, h) == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (made) {
            pthread_detach(thread);
            atomic_store(&n_helpers, n + 1);
        }
    }
    pthread_mutex_unlock(&threads_lock);
    return made;
}

/* Make an IDLE job ready for helpers. Its leader takes a reference to `owner` for it, and drops it
 * when all have left. */
static inline void job_begin(Job *job, void *owner) {
    if (job->state != IDLE) abort(); /* its counters may be in use */
    job->state = RUNNING;
    job->owner = owner;
    job->hired = 0;
    atomic_init(&job->entered, 0);
    atomic_init(&job->left, 0);
    atomic_init(&job->size, 0);
}

/* Post the job to up to `wanted` helpers; how many of them can be expected soon. Those that are
 * still on their way from a job that has left them behind count as wanted, but not as hired. */
static inline ptrdiff_t hire(Job *job, ptrdiff_t wanted) {
    const int n = atomic_load(&n_helpers);
    ptrdiff_t expected = 0;
    if (wanted > 0) note_affinity();
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
        HANDOVER(CANCEL);
        if (!atomic_compare_exchange_strong(&h->post, &posted, NULL)) continue;
        job->hired--;
        atomic_store(&h->absent, 1);
        atomic_store(&h->job, NULL);
        HANDOVER(CANCELLED);
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
    HANDOVER(ASSEMBLE);
    atomic_store(&job->size, job->hired + 1);
}

/* Threads of the team, for one of them; a leader that was not joined by others is alone. */
static inline ptrdiff_t assembled(Job *job, ptrdiff_t rank) {
    if (rank == 0) {
        if (job->state == ABANDONED) HANDOVER(ALONE);
        return job->state == RUNNING && atomic_load(&job->size) ? atomic_load(&job->size) : 1;
    }
    for (ptrdiff_t spins = 0; atomic_load(&job->size) == 0; spins++) pause_or_yield(spins);
    return atomic_load(&job->size);
}

static inline int all_left(Job *job) { return atomic_load(&job->left) == job->hired; }

/* The leader has done its part, and has waited for the helpers that have begun if it needs theirs.
 * Whether all of them have left; if not, the job is on the list that keeps its owner. */
static inline int dismiss(Job *job) {
    cancel(job);
    if (all_left(job)) {
        job->state = IDLE;
        return 1;
    }
    const int n = atomic_load(&n_helpers);
    for (int i = 0; i < n; i++)
        if (atomic_load(&helpers[i].job) == job) atomic_store(&helpers[i].absent, 1);
    HANDOVER(ABANDON);
    job->state = ABANDONED;
    pthread_mutex_lock(&threads_lock);
    job->next = abandoned;
    abandoned = job;
    atomic_fetch_add(&n_abandoned, 1);
    pthread_mutex_unlock(&threads_lock);
    return 0;
}

/* All of a short job: its leader waits for every helper that has begun. */
static inline void do_together(Job *job, ptrdiff_t helpers) {
    job_begin(job, NULL);
    hire(job, helpers);
    job->work(job, 0);
    cancel(job);
    for (ptrdiff_t spins = 0; !all_left(job); spins++) pause_or_yield(spins);
    dismiss(job);
}

/* An owner whose abandoned job no helper is at any more, off the list, or NULL. */
static inline void *job_reap(void) {
    void *owner = NULL;
    if (atomic_load(&n_abandoned) == 0) return NULL;
    HANDOVER(REAP);
    pthread_mutex_lock(&threads_lock);
    for (Job **at = &abandoned; *at && !owner; at = &(*at)->next) {
        if (!all_left(*at)) continue;
        owner = (*at)->owner;
        *at = (*at)->next;
        atomic_fetch_sub(&n_abandoned, 1);
        break;
    }
    pthread_mutex_unlock(&threads_lock);
    if (owner) HANDOVER(REAPED);
    return owner;
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
    HANDOVER(ARRIVE);
    ptrdiff_t arrived = atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1;
    const ptrdiff_t all = (arrived + size - 1) / size * size;
    double began = 0;
    for (ptrdiff_t spins = 0;; spins++) {
        if (arrived < 0) return DISMISSED;
        if (arrived >= all) break;
        pause_or_yield(spins);
        if (spins == SPINS_UNTIMED) began = seconds();
        if (spins > SPINS_UNTIMED && give_up && seconds() - began > patience) {
            HANDOVER(GIVE_UP);
            if (atomic_compare_exchange_strong(&team->arrived, &arrived, DISSOLVED)) {
                HANDOVER(GIVEN_UP);
                return GIVEN_UP;
            }
        }
        arrived = atomic_load_explicit(&team->arrived, memory_order_acquire);
    }
    HANDOVER(MET);
    return began > 0 && seconds() - began > patience ? LATE : MET;
}

/* A thing that at most one thread has at a time; a thread that does not get it does without. What a
 * thread of the parent process had is free in a child. */
typedef _Atomic int Claim;
static inline int take_claim(Claim *claim) {
    const int now = atomic_load(&fork_generation);
    int holder = atomic_load_explicit(claim, memory_order_relaxed);
    return holder != now && atomic_compare_exchange_strong(claim, &holder, now);
}
static inline void drop_claim(Claim *claim) {
    atomic_store_explicit(claim, 0, memory_order_release);
}

/* Whether all threads of a job are to leave as soon as they can. */
typedef _Atomic int Flag;
static inline int flag_of(Flag *flag) { return atomic_load_explicit(flag, memory_order_relaxed); }
static inline void raise_flag(Flag *flag) {
    HANDOVER(PAUSE);
    atomic_store_explicit(flag, 1, memory_order_relaxed);
}
static inline void lower_flag(Flag *flag) {
    atomic_store_explicit(flag, 0, memory_order_relaxed);
}

/* Work that is done in stints, one after the other but by any thread. */
typedef struct {
    _Alignas(64) _Atomic int taken;
    _Atomic ptrdiff_t step;     /* up to which it is done */
} Piece;

enum { ALL_DONE = -1, ALL_TAKEN = -2 };

/* The piece that is furthest behind of those no thread is at, so that one that loses its processor
 * holds up a stint; ALL_TAKEN while other threads are at all that is left; ALL_DONE after the last,
 * or when `paused`. */
static inline ptrdiff_t take_piece(Piece *pieces, ptrdiff_t n, ptrdiff_t end, Flag *paused) {
    while (!flag_of(paused)) {
        ptrdiff_t best = ALL_DONE, least = end;
        for (ptrdiff_t i = 0; i < n; i++) {
            const ptrdiff_t step = atomic_load(&pieces[i].step);
            if (step < end && best == ALL_DONE) best = ALL_TAKEN;
            if (step >= least || atomic_load(&pieces[i].taken)) continue;
            best = i;
            least = step;
        }
        if (best < 0) return best;
        HANDOVER(CLAIM);
        int free = 0;
        if (!atomic_compare_exchange_strong(&pieces[best].taken, &free, 1)) continue;
        if (atomic_load(&pieces[best].step) < end) return best;
        atomic_store(&pieces[best].taken, 0);
    }
    return ALL_DONE;
}
static inline ptrdiff_t piece_step(Piece *piece) { return atomic_load(&piece->step); }
static inline void leave_piece(Piece *piece, ptrdiff_t step) {
    atomic_store(&piece->step, step);
    HANDOVER(LEAVE_PIECE);
    atomic_store(&piece->taken, 0);
}

/* The next piece of work nobody has taken. */
static inline ptrdiff_t team_claim(Team *team) {
    HANDOVER(CLAIM);
    return atomic_fetch_add_explicit(&team->claimed, 1, memory_order_relaxed);
}

/* What threads of one call tell each other where order comes from elsewhere: flags and numbers. */
typedef _Atomic ptrdiff_t Shared;
static inline ptrdiff_t told(Shared *at) { return atomic_load_explicit(at, memory_order_relaxed); }
static inline void tell(Shared *at, ptrdiff_t value) {
    atomic_store_explicit(at, value, memory_order_relaxed);
}

/* Seconds (monotonic) until which all calls run on one thread, and for how many the next time: short
 * after the first time, as another library's pool may just be going to sleep, and twice as long each
 * time that a try fails. */
#define CROWDED_LEAST 1e-3
#define CROWDED_MOST 8e-3
static _Atomic double crowded_until = 0, crowded_for = CROWDED_LEAST;
static inline int is_crowded(void) {
    return seconds() < atomic_load_explicit(&crowded_until, memory_order_relaxed);
}
static inline void note_crowd(int crowded) {
    const double now_for = atomic_load_explicit(&crowded_for, memory_order_relaxed);
    double next = now_for / 2 > CROWDED_LEAST ? now_for / 2 : CROWDED_LEAST;
    if (crowded) {
        atomic_store_explicit(&crowded_until, seconds() + now_for, memory_order_relaxed);
        next = 2 * now_for < CROWDED_MOST ? 2 * now_for : CROWDED_MOST;
    }
    if (next != now_for) atomic_store_explicit(&crowded_for, next, memory_order_relaxed);
}

#endif
