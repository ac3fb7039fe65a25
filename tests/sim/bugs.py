"""Bugs that can be planted in the simulated machines; those of the cores are planted by patching them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bugs:
    """Each takes one mechanism of a modelled part out."""

    speaks_before_store: bool = False
    forgets_saves: float = 0.0  # share of commits that lose their rows although they are said to be durable
    unsynced: bool = False  # the database runs with synchronous=NORMAL: durable is told before the fsync
    no_jump: bool = False  # a restored database's numbers go on from where its backup stood
    unfenced: bool = False  # a broker that was replaced writes on
    any_epoch: bool = False  # clients take every broker's word; agents': patch the agent's core
    no_spool: bool = False  # agents keep outcomes in memory: they are gone when the process ends
    spool_unsynced: bool = False  # agents send an outcome before its file is forced to the disk
