"""A chat server like in a good tutorial on threads: `python threads_chat.py PORT`."""

import logging
import socket
import sys
import threading

clients: dict[int, socket.socket] = {}
lock = threading.Lock()
log = logging.getLogger("chat")


def broadcast(sender: int, line: bytes) -> None:
    with lock:  # the same order for all clients
        log.info("[BROADCAST] Broadcasting to %d clients", len(clients))
        for number, client in clients.items():
            if number != sender:
                try:
                    client.sendall(b"[Client %d] %b" % (sender, line))
                except OSError:
                    pass  # the client's own thread handles it


def serve(client: socket.socket, number: int) -> None:
    with lock:
        clients[number] = client
    log.info("[STATE] Client %d connected", number)
    try:
        client.sendall(b"You are Client %d\n" % number)
        with client.makefile("rb") as lines:
            for line in lines:
                log.info("[RX] [Client %d] %s", number, line.decode("utf-8", "replace").rstrip())
                broadcast(number, line)
    except OSError:
        pass
    finally:
        with lock:
            del clients[number]
        client.close()
        log.info("[STATE] Client %d disconnected", number)


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096) as listener:
        number = 0
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number += 1
            threading.Thread(target=serve, args=(client, number), daemon=True).start()


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s [%(levelname)s] %(message)s", level=logging.INFO)
    main()
