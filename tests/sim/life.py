"""One life of a program: what it plans dies with it, and waits while it stands still."""

from sim.world import Action, World


class Life:
    """From its start to its end; `pause` is SIGSTOP or a suspended host."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.is_alive = True
        self.is_paused = False
        self._clock_lag_s = 0.0  # the monotonic clock stands still while the host is suspended
        self._inbox: list[Action] = []
        self._deferred: list[Action] = []

    @property
    def clock_s(self) -> float:
        """Its monotonic clock."""
        return self.world.now_s - self._clock_lag_s

    def after(self, delay_s: float, action: Action) -> None:
        """Do it later, if it still lives; once it goes on if it stands still then."""

        def due() -> None:
            if not self.is_alive:
                return
            if self.is_paused:
                self._deferred.append(due)
            else:
                action()

        self.world.after(delay_s, due)

    def take_in(self, read: Action) -> None:
        """Something arrived: it is read now, or waits in the kernel's buffers."""
        if self.is_paused:
            self._inbox.append(read)
        elif self.is_alive:
            read()

    def pause(self, length_s: float, *, is_suspend: bool) -> bool:
        """Stand still for a while; False if it cannot."""
        if self.is_paused or not self.is_alive:
            return False
        self.is_paused = True
        self.world.note(f"{self.name} stands still for {length_s:.0f} s")
        self.world.after(length_s, lambda: self._go_on(length_s, is_suspend=is_suspend))
        return True

    def missed(self, gap_s: float) -> None:
        """Nothing was read for so long, as its own clock says."""

    def _go_on(self, length_s: float, *, is_suspend: bool) -> None:
        self.is_paused = False
        if not self.is_alive:
            return
        self.world.note(f"{self.name} goes on")
        if is_suspend:
            self._clock_lag_s += length_s
        else:
            self.missed(length_s)
        # All that arrived is read before any timer is looked at: what came in time is not late because we were.
        inbox, self._inbox = self._inbox, []
        for read in inbox:
            if self.is_alive:
                read()
        deferred, self._deferred = self._deferred, []
        for due in deferred:
            due()
