"""The signals that end a command, and SIGHUP, by which a server reloads."""

import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager

__all__ = ["EndingSignals", "HangUps", "ending_signals", "receive_ending_signals"]


class EndingSignals:
    """An async iterator over received signal numbers; *any_came* is set by the first."""

    def __init__(self, signals: AsyncIterator[int]) -> None:
        self._signals = signals
        self.any_came = False

    def __aiter__(self) -> "EndingSignals":
        return self

    async def __anext__(self) -> int:
        """Wait for the next signal and return its number."""
        number = await anext(self._signals)
        self.any_came = True
        return number


@contextmanager
def receive_ending_signals(*, hang_up: bool = True) -> Iterator[EndingSignals]:
    """Receive `ending_signals` within the block, instead of their handlers.

    If one was received, the process is about to exit, and later ones are ignored: pressing Ctrl+C
    again changes neither the exit status nor the output.  Otherwise the previous handlers are
    restored.  Main thread only, like `trio.open_signal_receiver`.
    """
    import trio  # not for `--help`

    numbers = ending_signals(hang_up=hang_up)
    before = {number: signal.signal(number, _ignore) for number in numbers}
    received = None
    try:
        with trio.open_signal_receiver(*numbers) as signals:
            received = EndingSignals(signals)
            yield received
    finally:
        is_ending = received is not None and received.any_came
        for number, handler in before.items():
            # At exit Python resets every handler to the default, but leaves SIG_IGN.
            signal.signal(number, signal.SIG_IGN if is_ending else handler)


def _ignore(number: int, frame: object) -> None:
    """Do nothing.  Trio raises undelivered signals again when its receiver closes."""


class HangUps:
    """SIGHUP, for a server: it does not end the process, from when this is made.

    It is no longer blocked then (see `multichat.__main__`).  A SIGHUP that is ignored, as under
    `nohup`, stays ignored.  Main thread only.
    """

    def __init__(self) -> None:
        self._has_come = False  # before `receive`
        self._is_ignored = (
            sys.platform == "win32" or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        )
        if sys.platform != "win32" and not self._is_ignored:
            signal.signal(signal.SIGHUP, self._note)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])

    def _note(self, *_: object) -> None:
        self._has_come = True

    async def receive(self) -> AsyncGenerator[None]:
        """Yield for each SIGHUP, also for one that came before; those that come at once are one.

        The process is about to exit when this is closed: from then on, SIGHUP is ignored.
        """
        import trio

        if sys.platform == "win32" or self._is_ignored:
            await trio.sleep_forever()
        try:
            with trio.open_signal_receiver(signal.SIGHUP) as signals:
                if self._has_come:
                    yield
                async for _ in signals:
                    yield
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)


def ending_signals(*, hang_up: bool = True) -> list[signal.Signals]:
    """Return the signals that end a command: SIGINT and SIGTERM; SIGHUP and SIGQUIT if not ignored.

    Without *hang_up*, not SIGHUP.  `nohup` starts a program with SIGHUP ignored, and it stays
    ignored.  Unhandled, SIGQUIT would leave the terminal in raw mode.
    """
    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        more = (signal.SIGHUP, signal.SIGQUIT) if hang_up else (signal.SIGQUIT,)
        signals += [each for each in more if signal.getsignal(each) is not signal.SIG_IGN]
    return signals
