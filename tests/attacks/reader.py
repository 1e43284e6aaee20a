"""A JSON client that only reads, until the message `end`: `python reader.py PORT NAME [SINCE]`.

Messages must begin with numbers that rise like their ids, and `missed` must equal the number of
skipped ids.  Prints its result at the end, or on SIGTERM, as one line of JSON.

Imports nothing from multichat: it checks the bytes on the wire.
"""

import json
import signal
import socket
import sys
from contextlib import suppress


class _Found:
    def __init__(self, last: int) -> None:
        self.first = ""  # the id of the first message
        self.said = 0
        self.missed = 0
        self.last = last  # the number of the last message
        self.whole_from = 0  # the number of the message after the last missed one
        self.direct = 0
        self.trouble = ""
        self._offset: int | None = None
        self._gap = 0

    def take(self, event: dict[str, object]) -> bool:
        """Process a message; return whether to continue."""
        kind = event["type"]
        if kind == "direct":
            self.direct += 1
        elif kind == "missed":
            self._gap += int(str(event["count"]))
        elif kind == "said":
            return self._take_message(str(event["id"]), str(event["text"]))
        elif kind in ("error", "goodbye"):
            self.trouble = json.dumps(event)
        return not self.trouble

    def _take_message(self, id_: str, text: str) -> bool:
        if text == "end":
            self.missed += self._gap
            return False
        position = int(id_.rpartition("-")[2])
        number = int(text.partition(" ")[0])
        if self._offset is None:
            self.first = id_
            self._offset = position - number
        if position - number != self._offset:
            self.trouble = f"message {number} has the id {id_}"
        elif number != self.last + 1 + self._gap:
            self.trouble = f"message {number} came after {self.last}, with {self._gap} missed"
        if self._gap:
            self.whole_from = number
        self.missed += self._gap
        self._gap = 0
        self.said += 1
        self.last = number
        return not self.trouble


def main(port: int, name: str, since: str) -> None:
    """Read until the end, or until the server closes the connection."""
    found = _Found(0 if since else -1)  # the room's messages are numbered from 0

    def finish(*_: object) -> None:
        sys.stdout.write(json.dumps({k: v for k, v in vars(found).items() if k[0] != "_"}) + "\n")
        sys.stdout.flush()
        sys.exit()

    signal.signal(signal.SIGTERM, finish)
    hello = {"name": name, "since": since} if since else {"name": name}
    with suppress(OSError, ValueError), socket.create_connection(("127.0.0.1", port)) as stream:
        stream.sendall(f"/json {json.dumps(hello)}\n".encode())
        with stream.makefile("rb", 1 << 20) as lines:
            for line in lines:
                event = json.loads(line)
                if event["type"] == "welcome":
                    sys.stdout.write("reading\n")
                    sys.stdout.flush()
                elif not found.take(event):
                    finish()
    found.trouble = found.trouble or "the server closed the connection"
    finish()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "")
