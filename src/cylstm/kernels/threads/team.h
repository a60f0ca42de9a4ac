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

#include <sched.h>
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

/* Once, when the module is imported. */
void watch_forks(void);

/* Make an IDLE job ready for helpers. Its leader takes a reference to `owner` for it, and drops it
 * when all have left. */
void job_begin(Job *job, void *owner);
/* Post the job to up to `wanted` helpers; how many of them can be expected soon. Those that are
 * still on their way from a job that has left them behind count as wanted, but not as hired. */
ptrdiff_t hire(Job *job, ptrdiff_t wanted);
/* Take the job back from those that have not begun. */
void cancel(Job *job);
/* Wait for those that can be expected, and go on without the others. */
void assemble(Job *job, ptrdiff_t expected);
/* Threads of the team, for one of them; a leader that was not joined by others is alone. */
ptrdiff_t assembled(Job *job, ptrdiff_t rank);
int all_left(Job *job);
/* The leader has done its part, and has waited for the helpers that have begun if it needs theirs.
 * Whether all of them have left; if not, the job is on the list that keeps its owner. */
int dismiss(Job *job);
/* All of a short job: its leader waits for every helper that has begun. */
void do_together(Job *job, ptrdiff_t helpers);
/* An owner whose abandoned job no helper is at any more, off the list, or NULL. */
void *job_reap(void);

/* Whether calls are to stay on one thread for now, because threads were kept from running. */
int is_crowded(void);
void note_crowd(int crowded);

/* How often this process has been forked, and one. */
extern _Atomic int fork_generation;

enum { SPINS = 10000, SPINS_UNTIMED = 500 };

/* Spin briefly, then let others run: next to another process that may cost the rest of this time
 * slice and a whole one of its own, so it is worth waiting a few hundred microseconds first. */
static inline void pause_or_yield(ptrdiff_t spins) {
    if (spins < SPINS) CPU_PAUSE();
    else sched_yield();
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

#endif
