"""A batch's work, as the display is told of it."""

from subl_jax.engine.observers import Display


class BatchProgress:
    """How much of a batch is done. Until `begins`, it is work of an earlier run that is restored."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._shown = 0
        self._earlier: int | None = None

    @property
    def earlier(self) -> int:
        """Work that an earlier run has done, once it is known."""
        return self._earlier or 0

    def begins(self) -> None:
        """What is shown so far was restored; the rest is computed."""
        self._earlier = self._shown

    def at(self, done: int) -> None:
        """done: all work so far."""
        news, self._shown = done - self._shown, done
        if news:
            self._display.advance(news, restored=self._earlier is None)

    def spared(self, count: int) -> None:
        """Work that counts as done though nobody has to do it."""
        self._shown += count
        self._display.advance(count, restored=True)

    def taken_back(self) -> None:
        """The batch is done again, by fewer lanes at a time."""
        self._display.advance(self.earlier - self._shown)
        self._display.advance(-self.earlier, restored=True)
