"""The signals that end a command."""

import signal
import sys

__all__ = ["ending_signals"]


def ending_signals() -> list[signal.Signals]:
    """Return the signals that end a command: SIGINT, SIGTERM, and SIGHUP unless it is ignored.

    `nohup` starts a program with SIGHUP ignored, and it stays ignored.
    """
    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals
