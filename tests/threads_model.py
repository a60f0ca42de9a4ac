"""The thread protocol of kernels/threads/team.h as a model whose every state can be explored.

Leaders and helpers are processes that take one atomic step at a time: what team.h does between two
accesses to memory that others see. Patience may run out at any moment, so every schedule is one of
the model's. Memory of freed jobs is used again, at the same address, and each `begin` has a number,
the epoch, that no thread of the protocol knows: by it the model sees who is where.
"""

from typing import NamedTuple

IDLE, RUNNING, ABANDONED = range(3)
NONE, DISSOLVED = -1, -1000

MUTANTS = {
    "counters reset under a helper": "a job that is not IDLE is begun anew",
    "hired for while ABANDONED": "its leader goes on with helpers instead of alone",
    "not waited for": "the next window begins while helpers are at the last one",
    "freed before all have left": "the call is not kept for the helper that is left behind",
    "reaped without a look": "a job comes off the list whoever is at it",
    "dismissed without cancel": "a letter stays posted when its job is over",
    "cancelled without looking": "the post is emptied without seeing whether it was taken",
    "left before taken": "all have left, but cannot be hired",
    "left before the last access": "the helper touches the job once more",
    "hint cleared late": "a helper forgets the job of its next leader",
    "taken by two": "leaders do not see each other",
    "given up without the count": "a leader goes on whose meeting has just been complete",
    "a team of those asked for": "it waits for a member whose letter has been taken back",
}


# What a process knows: where it is, and its own variables.
LEADER = {"at": "call", "calls": 0, "place": NONE, "window": 0, "behind": 0, "i": 0, "then": "",
          "meeting": 0, "seen": 0, "reaped": NONE}  # fmt: skip
HELPER = {"at": "take", "number": 0, "job": NONE, "size": 0, "meeting": 0}


class Setting(NamedTuple):
    """Who there is and what leaders do."""

    leaders: int = 1
    helpers: int = 1
    calls: int = 2  # of each leader, one after the other
    windows: int = 2  # of each call, or stretches between pauses
    meetings: int = 1  # of each window; 0: work is claimed, and nobody waits for a team
    private: bool = True  # whether a leader may give a meeting up
    places: int = 2  # for jobs in memory


class Broken(AssertionError):
    """An invariant does not hold."""


class Job:
    """What lies in the memory of a call."""

    fields = "references state hired entered left size arrived epoch".split()
    __slots__ = fields

    def __init__(self, values):
        for name, value in zip(self.fields, values, strict=True):
            setattr(self, name, value)

    def frozen(self):
        return tuple([getattr(self, name) for name in self.fields])


class Model:
    """One state, made from a tuple and turned into one; `run` takes a step of one process."""

    def __init__(self, setting, mutant, state):
        self.setting, self.mutant = setting, mutant
        jobs, helpers, processes, abandoned, self.epochs = state
        self.jobs = [Job(values) for values in jobs]
        self.post, self.taken, self.hint = map(list, helpers)
        self.processes = [
            dict(zip(LEADER if len(values) == len(LEADER) else HELPER, values, strict=True))
            for values in processes
        ]
        self.abandoned = list(abandoned)

    def frozen(self):
        return (
            tuple([job.frozen() for job in self.jobs]),
            (tuple(self.post), tuple(self.taken), tuple(self.hint)),
            tuple([tuple(p.values()) for p in self.processes]),
            tuple(self.abandoned),
            self.epochs,
        )

    def run(self, number, patience_ends):
        """Whether process `number` could take a step; the second step where there are two."""
        process = self.processes[number]
        if patience_ends and process["at"] not in ("call", "await_team"):
            return False
        self.patience_ends = patience_ends
        following = getattr(self, process["at"])(process)
        if following:
            process["at"] = following
        return bool(following)

    def require(self, holds, what):
        if not holds:
            raise Broken(what)

    # A helper: next_job and helper_main

    def take(self, me):
        i = me["number"]
        if self.post[i] == NONE:
            return None
        me["job"], self.post[i] = self.post[i], NONE
        return "enter"

    def job_of(self, me):
        """The job a helper is at, which must be the one that it was posted."""
        place, epoch = me["job"]
        self.require(self.jobs[place].epoch == epoch, "a helper is in memory that is not its job's")
        return self.jobs[place]

    def enter(self, me):
        self.job_of(me).entered += 1
        return "join" if self.setting.meetings else "work"

    def join(self, me):
        size = self.job_of(me).size
        if size == 0:
            return None
        me["size"], me["meeting"] = size, 0
        return "work"

    def work(self, me):
        """Up to the next meeting, which it comes to, or to the end."""
        job = self.job_of(me)
        if me["meeting"] == self.setting.meetings:
            return "touch" if self.mutant == "left before the last access" else "go_1"
        job.arrived += 1
        me["meeting"] += 1
        return "meet"

    def meet(self, me):
        arrived = self.job_of(me).arrived
        if 0 <= arrived < me["meeting"] * me["size"]:
            return None
        return "go_1" if arrived < 0 else "work"

    def touch(self, me):
        self.job_of(me).left += 1
        return "touch_again"

    def touch_again(self, me):
        self.job_of(me)
        self.hint[me["number"]], self.taken[me["number"]], me["job"] = NONE, 0, NONE
        return "take"

    def leave(self, me, what):
        """One of a helper's last three stores."""
        i = me["number"]
        if what == "hint":
            self.hint[i] = NONE
        elif what == "taken":
            self.taken[i] = 0
        else:
            self.job_of(me).left += 1
            me["job"], me["size"], me["meeting"] = NONE, 0, 0

    def go(self, me, turn):
        order = {"left before taken": ("hint", "left", "taken"),
                 "hint cleared late": ("taken", "hint", "left")}  # fmt: skip
        self.leave(me, order.get(self.mutant, ("hint", "taken", "left"))[turn])
        return ("go_2", "go_3", "take")[turn]

    def go_1(self, me):
        return self.go(me, 0)

    def go_2(self, me):
        return self.go(me, 1)

    def go_3(self, me):
        return self.go(me, 2)

    # A leader: go, go_on, hire, assemble, team_meet, dismiss, job_reap

    def call(self, me):
        """Memory for a call, at the first free place, or at the second."""
        free = [k for k, job in enumerate(self.jobs) if job.references == 0]
        if me["calls"] == self.setting.calls or len(free) <= self.patience_ends:
            return None
        me["calls"] += 1
        me["place"], me["window"] = free[self.patience_ends], 0
        self.jobs[me["place"]] = Job([1, IDLE, 0, 0, 0, 0, 0, 0])
        return "begin"

    def begin(self, me):
        job = self.jobs[me["place"]]
        me["window"] += 1
        me["behind"], me["i"] = 0, 0
        if job.state != IDLE:
            if self.mutant == "hired for while ABANDONED":
                job.references += 1
                return "hire"
            if self.mutant != "counters reset under a helper":
                return "reap"  # alone
        self.epochs += 1
        self.jobs[me["place"]] = Job([job.references + 1, RUNNING, 0, 0, 0, 0, 0, self.epochs])
        return "hire"

    def hire(self, me):
        if me["i"] == self.setting.helpers:
            job = self.jobs[me["place"]]
            if self.setting.meetings == 0:
                return self.over(me)
            if self.mutant == "a team of those asked for":
                job.size = job.hired + 1
            me["i"], me["then"] = 0, "assemble"
            return "cancel"
        if self.taken[me["i"]] and self.mutant != "taken by two":
            me["i"] += 1
            return "hire"
        self.taken[me["i"]] = 1
        return "address"

    def address(self, me):
        self.hint[me["i"]] = me["place"]
        return "send"

    def send(self, me):
        job = self.jobs[me["place"]]
        self.require(self.post[me["i"]] == NONE, "a letter is lost")
        self.post[me["i"]] = (me["place"], job.epoch)
        job.hired += 1
        me["i"] += 1
        return "hire"

    def cancel(self, me):
        """Of one helper after the other; waiting for them to enter may end at any time."""
        job, i = self.jobs[me["place"]], me["i"]
        if i == self.setting.helpers or job.entered >= job.hired:
            me["i"] = 0
            then, me["then"] = me["then"], ""
            self.all_back(job)
            return then
        if self.hint[i] != me["place"]:
            me["i"] += 1
            return "cancel"
        return "take_back"

    def all_back(self, job):
        out = [letter for letter in self.post if letter != NONE and letter[1] == job.epoch]
        self.require(not out, "a letter is out when all should be back")

    def take_back(self, me):
        i = me["i"]
        if (self.post[i] == NONE or self.post[i][0] != me["place"]) \
                and self.mutant != "cancelled without looking":  # fmt: skip
            me["i"] += 1
            return "cancel"
        self.post[i] = NONE
        self.jobs[me["place"]].hired -= 1
        return "clear_hint"

    def clear_hint(self, me):
        self.hint[me["i"]] = NONE
        return "let_free"

    def let_free(self, me):
        self.taken[me["i"]] = 0
        me["i"] += 1
        return "cancel"

    def assemble(self, me):
        job = self.jobs[me["place"]]
        if self.mutant != "a team of those asked for":
            job.size = job.hired + 1
        return "lead"

    def lead(self, me):
        job = self.jobs[me["place"]]
        if me["meeting"] == self.setting.meetings or job.size == 1:
            return self.over(me)
        job.arrived += 1
        me["meeting"] += 1
        me["seen"] = job.arrived
        return "await_team"

    def await_team(self, me):
        job = self.jobs[me["place"]]
        complete = job.arrived >= me["meeting"] * job.size
        if not self.patience_ends:
            me["seen"] = job.arrived
            return "lead" if complete else None
        if not self.setting.private or me["seen"] >= me["meeting"] * job.size:
            return None
        if job.arrived != me["seen"] and self.mutant != "given up without the count":
            return None
        self.require(not complete, "a meeting is given up that was complete")
        job.arrived, me["behind"] = DISSOLVED, 1
        return self.over(me)

    def over(self, me):
        """The leader has done its part."""
        me["i"], me["then"], me["meeting"], me["seen"] = 0, "dismiss", 0, 0
        return "dismiss" if self.mutant == "dismissed without cancel" else "cancel"

    def dismiss(self, me):
        job = self.jobs[me["place"]]
        self.all_back(job)
        if job.left != job.hired:
            if not me["behind"] and self.mutant != "not waited for":
                return None
            if me["behind"] and self.mutant != "freed before all have left":
                job.state = ABANDONED
                return "list"
        at_work = [p for p in self.helpers() if p["job"] != NONE and p["job"][1] == job.epoch]
        self.require(job.left != job.hired or not at_work, "all have left, and one is there")
        if self.setting.leaders == 1:
            idle = [p["number"] for p in self.helpers() if p["job"] == NONE]
            self.require(not any(self.taken[i] and self.post[i] == NONE for i in idle),
                         "all have left, and one cannot be hired")  # fmt: skip
        job.state = IDLE
        self.drop(me["place"])
        return "reap"

    def list(self, me):
        self.abandoned.append(me["place"])
        return "reap"

    def reap(self, me):
        """Jobs off the list; what they keep is let go of when no lock is held."""
        for place in self.abandoned:
            job = self.jobs[place]
            if job.left == job.hired or self.mutant == "reaped without a look":
                self.abandoned.remove(place)
                me["reaped"] = place
                return "drop_reaped"
        if me["window"] < self.setting.windows:
            return "begin"
        self.drop(me["place"])
        return "call"

    def drop_reaped(self, me):
        self.drop(me["reaped"])
        me["reaped"] = NONE
        return "reap"

    def drop(self, place):
        """Drop a reference; without one the memory is free, for other jobs as well."""
        job = self.jobs[place]
        job.references -= 1
        self.require(job.references >= 0, "a reference is dropped twice")
        if job.references == 0:
            self.jobs[place] = Job([0] * 8)

    def helpers(self):
        return [p for p in self.processes if "number" in p]

    def ended(self):
        """Whether leaders have done all calls, helpers wait, and nothing is left but the list."""
        leaders = [p for p in self.processes if "calls" in p]
        if any(p["at"] != "call" or p["calls"] < self.setting.calls for p in leaders):
            return False
        if any(p["at"] != "take" for p in self.helpers()) or self.post != [NONE] * len(self.post):
            return False
        self.require(not any(self.taken), "a helper is lost")
        for place, job in enumerate(self.jobs):
            self.require((job.references == 0) == (place not in self.abandoned), "a call is lost")
            self.require(job.left == job.hired, "a job never ends")
        return True


def start(setting):
    """The state in which nothing has happened."""
    n = setting.helpers
    return (
        ((0,) * len(Job.fields),) * setting.places,
        ((NONE,) * n, (0,) * n, (NONE,) * n),
        tuple([tuple(LEADER.values())] * setting.leaders
              + [tuple((HELPER | {"number": i}).values()) for i in range(n)]),
        (),
        0,
    )  # fmt: skip


def explore(setting, mutant=None):
    """Visit every state; how many there are. `Broken` if one breaks an invariant or has no end."""
    first = start(setting)
    before, waiting, ends = {first: []}, [first], []
    while waiting:
        state = waiting.pop()
        count = 0
        for number in range(setting.leaders + setting.helpers):
            for patience_ends in (False, True):
                model = Model(setting, mutant, state)
                if not model.run(number, patience_ends):
                    continue
                count += 1
                following = model.frozen()
                if following not in before:
                    before[following] = []
                    waiting.append(following)
                before[following].append(state)
        if Model(setting, mutant, state).ended():
            ends.append(state)
        elif count == 0:
            raise Broken("nobody can take a step")
    reaching = set(ends)
    while ends:
        for state in before[ends.pop()]:
            if state not in reaching:
                reaching.add(state)
                ends.append(state)
    if len(reaching) < len(before):
        raise Broken("there is no way to the end")
    return len(before)
