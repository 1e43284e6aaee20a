"""Records the log, line by line."""

import logging

from multichat.log_format import LineFormatter


class LogRecorder(logging.Handler):
    """Collects log lines as the command would print them, without the time."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # "2025-01-15 10:30:45.123 [INFO] [server] [STATE] …" from the level on
        self.lines += [line[24:] for line in self.format(record).split("\n")]
