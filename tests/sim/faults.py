"""What goes wrong in a run: rates that every seed draws anew, 0 among them, as constant trouble hides bugs."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Faults:
    """`..._every_s`: mean time between two of them, 0: never. Others are shares (0 to 1) or mean times."""

    # The network.
    loss: float
    doubling: float
    latency_s: float  # messages overtake each other by it
    stale: float  # of the messages of a connection that is over: they arrive all the same
    partition_every_s: float
    # Programs that die or stand still.
    broker_crash_every_s: float
    agent_crash_every_s: float
    client_crash_every_s: float
    crash_at_step: float  # of the broker, at each step between receiving, committing, syncing and speaking
    agent_crash_at_step: float  # of an agent, at each step of a spool write
    broker_pause_every_s: float  # SIGSTOP, suspend: 5 to 40 s
    agent_pause_every_s: float
    # Machines.
    power_cut_every_s: float  # of the broker's host, with the agent on it
    box_power_cut_every_s: float  # of an agent's box
    commit_s: float
    spool_full: float  # of an agent's spool writes: no space
    disk_full_every_s: float  # of the broker's disk, in the runs of the whole server
    disk_busy_every_s: float  # somebody else holds the database's lock
    clock_jumps: bool  # the wall clock jumps by up to an hour
    # Ollama and its models.
    slow_work: bool  # every attempt takes a minute or more
    poison: float  # of the tasks: whoever runs one dies
    outage_every_s: float  # no Ollama answers anywhere, for a few seconds
    releasing_s: float  # how long an Ollama stays busy with a call that was given up
    fails: float  # of the attempts, each in some way of its own
    # People.
    workers: int  # how many boxes they have; 0: as the seed says
    slots: int  # of each box; 0: as the seed says
    priority: int  # of every task; 0: as the seed says
    cancel_every_s: float  # each client
    retry_every_s: float
    deadlines: bool  # some tasks have one
    restore_every_s: float  # an older copy of the database is put in place
    split: float  # of the restores: onto another host, while the old broker, thought dead, only stands still
    takeover_every_s: float  # a second broker begins while the first one only stands still
    operator_every_s: float  # pause, drain, resume, remove and invite a worker, revoke and invite a client
    agent_stop_every_s: float  # SIGTERM, and started again later
    same_key_every_s: float  # a second agent with the key of one that runs
    skew: bool  # peers of another version: unknown fields, unknown messages, a protocol nobody speaks
    small_limits: bool  # queue_per_client, sessions_max, lookups_per_session: refusals happen
    has_habits: bool  # what the seed says of its people's habits holds; False: they have none

    @classmethod
    def draw(cls, draws: random.Random) -> "Faults":
        """Rates for one seed."""

        def some(*values: float) -> float:
            return draws.choice(values)

        return cls(
            loss=some(0.0, 0.0, 0.02, 0.1, 0.3),
            doubling=some(0.0, 0.0, 0.05, 0.2),
            latency_s=some(0.001, 0.02, 0.3, 2.0),
            stale=some(0.0, 0.5, 1.0),
            partition_every_s=some(0.0, 0.0, 120.0, 400.0),
            broker_crash_every_s=some(0.0, 0.0, 60.0, 200.0, 600.0),
            agent_crash_every_s=some(0.0, 0.0, 60.0, 150.0, 500.0),
            client_crash_every_s=some(0.0, 100.0, 300.0),
            crash_at_step=some(0.0, 0.0, 0.0, 0.0005, 0.003),
            agent_crash_at_step=some(0.0, 0.0, 0.0, 0.02, 0.1),
            broker_pause_every_s=some(0.0, 0.0, 0.0, 150.0, 400.0),
            agent_pause_every_s=some(0.0, 0.0, 0.0, 100.0, 300.0),
            power_cut_every_s=some(0.0, 0.0, 0.0, 150.0, 400.0),
            box_power_cut_every_s=some(0.0, 0.0, 0.0, 150.0, 400.0),
            commit_s=some(0.001, 0.001, 0.02, 0.02, 0.5, 0.5, 4.0, 20.0),
            spool_full=some(0.0, 0.0, 0.0, 0.2),
            disk_full_every_s=some(0.0, 150.0, 400.0),
            disk_busy_every_s=some(0.0, 0.0, 200.0),
            clock_jumps=draws.random() < 0.3,
            slow_work=False,
            poison=0.0,
            outage_every_s=0.0,
            releasing_s=0.0,
            fails=0.15,
            workers=0,
            slots=0,
            priority=0,
            cancel_every_s=120.0,
            retry_every_s=150.0,
            deadlines=True,
            restore_every_s=some(0.0, 0.0, 0.0, 200.0, 400.0),
            split=0.0,
            takeover_every_s=some(0.0, 0.0, 0.0, 0.0, 150.0, 300.0),
            operator_every_s=some(0.0, 0.0, 60.0, 150.0),
            agent_stop_every_s=some(0.0, 0.0, 0.0, 150.0, 400.0),
            same_key_every_s=some(0.0, 0.0, 0.0, 0.0, 200.0),
            skew=draws.random() < 0.3,
            small_limits=draws.random() < 0.15,
            has_habits=True,
        )
