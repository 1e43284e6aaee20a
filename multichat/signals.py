"""The signals that end a command."""

import signal
import sys

__all__ = ["ending_signals"]


def ending_signals() -> list[signal.Signals]:
    """Return the signals that end a command: SIGINT and SIGTERM; SIGHUP and SIGQUIT if not ignored.

    `nohup` starts a program with SIGHUP ignored, and it stays ignored.  SIGQUIT would leave the
    terminal in its raw mode.
    """
    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        more = (signal.SIGHUP, signal.SIGQUIT)
        signals += [each for each in more if signal.getsignal(each) is not signal.SIG_IGN]
    return signals
