/* The helpers of this process, and those who hire them: team.h has the protocol. */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include "memory.h"
#include "team.h"

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
enum { MOST_HELPERS = 255 };

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

_Atomic int fork_generation = 1;

static void before_fork(void) { pthread_mutex_lock(&threads_lock); }
static void after_fork(void) { pthread_mutex_unlock(&threads_lock); }
static void in_child(void) {
    atomic_fetch_add(&fork_generation, 1);
    atomic_store(&n_helpers, 0);
    for (Job *job = abandoned; job; job = job->next) atomic_store(&job->left, job->hired);
    pthread_mutex_init(&threads_lock, NULL);
    forget_kept_blocks();
}
void watch_forks(void) { pthread_atfork(before_fork, after_fork, in_child); }

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

void job_begin(Job *job, void *owner) {
    if (job->state != IDLE) abort(); /* its counters may be in use */
    job->state = RUNNING;
    job->owner = owner;
    job->hired = 0;
    atomic_init(&job->entered, 0);
    atomic_init(&job->left, 0);
    atomic_init(&job->size, 0);
}

ptrdiff_t hire(Job *job, ptrdiff_t wanted) {
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

void cancel(Job *job) {
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

void assemble(Job *job, ptrdiff_t expected) {
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

ptrdiff_t assembled(Job *job, ptrdiff_t rank) {
    if (rank == 0) {
        if (job->state == ABANDONED) HANDOVER(ALONE);
        return job->state == RUNNING && atomic_load(&job->size) ? atomic_load(&job->size) : 1;
    }
    for (ptrdiff_t spins = 0; atomic_load(&job->size) == 0; spins++) pause_or_yield(spins);
    return atomic_load(&job->size);
}

int all_left(Job *job) { return atomic_load(&job->left) == job->hired; }

int dismiss(Job *job) {
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

void do_together(Job *job, ptrdiff_t helpers) {
    job_begin(job, NULL);
    hire(job, helpers);
    job->work(job, 0);
    cancel(job);
    for (ptrdiff_t spins = 0; !all_left(job); spins++) pause_or_yield(spins);
    dismiss(job);
}

void *job_reap(void) {
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

/* Seconds (monotonic) until which all calls run on one thread, and for how many the next time: short
 * after the first time, as another library's pool may just be going to sleep, and twice as long each
 * time that a try fails. */
#define CROWDED_LEAST 1e-3
#define CROWDED_MOST 8e-3
static _Atomic double crowded_until = 0, crowded_for = CROWDED_LEAST;
int is_crowded(void) {
    return seconds() < atomic_load_explicit(&crowded_until, memory_order_relaxed);
}
void note_crowd(int crowded) {
    const double now_for = atomic_load_explicit(&crowded_for, memory_order_relaxed);
    double next = now_for / 2 > CROWDED_LEAST ? now_for / 2 : CROWDED_LEAST;
    if (crowded) {
        atomic_store_explicit(&crowded_until, seconds() + now_for, memory_order_relaxed);
        next = 2 * now_for < CROWDED_MOST ? 2 * now_for : CROWDED_MOST;
    }
    if (next != now_for) atomic_store_explicit(&crowded_for, next, memory_order_relaxed);
}
