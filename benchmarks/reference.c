/* What this machine can do: servers that have nothing to decide.
 *
 *     reference limit PORT CLIENTS BYTES   accept so many, then write ready-made messages to all of
 *                                          them in turn, BYTES at a time, as fast as they are taken
 *     reference loop PORT                  a chat as plain as can be: one loop, one read, one send to
 *                                          each of the others in turn; tags reads, frames nothing
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 1024, READ_BYTES = 64 * 1024, MAX_FILES = 65536 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int listen_on(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (void *)&address, sizeof address) || listen(fd, 4096)) fail("listen");
    return fd;
}

static int welcome(int listener, int flags) {
    int one = 1, fd = accept4(listener, 0, 0, flags);
    if (fd < 0) fail("accept");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void limit(int listener, int clients, int bytes) {
    static const char message[] =
        "[Client 1] |m00 000000000000rstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijk\n";
    int size = sizeof message - 1, whole = bytes > size ? bytes / size * size : size;
    char *ready = malloc(whole);
    for (int i = 0; i < whole; i += size) memcpy(ready + i, message, size);
    int poller = epoll_create1(0), *fd = calloc(clients, sizeof *fd);
    int *written = calloc(clients, sizeof *written);
    for (int i = 0; i < clients; i++) {
        struct epoll_event event = {EPOLLOUT, {.u32 = i}};
        fd[i] = welcome(listener, SOCK_NONBLOCK);
        epoll_ctl(poller, EPOLL_CTL_ADD, fd[i], &event);
    }
    struct epoll_event events[EVENTS];
    for (;;) {
        int n = epoll_wait(poller, events, EVENTS, -1);
        for (int k = 0; k < n; k++) {
            int i = events[k].data.u32;
            ssize_t taken = send(fd[i], ready + written[i], whole - written[i], MSG_NOSIGNAL);
            if (taken > 0) written[i] = (written[i] + taken) % whole;
            else if (events[k].events & (EPOLLHUP | EPOLLERR)) pause(); /* the run is over */
        }
    }
}

static void loop(int listener) {
    static int fds[MAX_FILES], numbers[MAX_FILES];
    static char data[READ_BYTES + 32];
    int poller = epoll_create1(0), count = 0, number = 0;
    struct epoll_event event = {EPOLLIN, {.fd = listener}}, events[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(poller, events, EVENTS, -1);
        for (int k = 0; k < n; k++) {
            int from = events[k].data.fd;
            if (from == listener) {
                event.data.fd = fds[count++] = welcome(listener, 0);
                numbers[event.data.fd] = ++number;
                epoll_ctl(poller, EPOLL_CTL_ADD, event.data.fd, &event);
                send(event.data.fd, data, sprintf(data, "You are Client %d\n", number), 0);
                continue;
            }
            int tag = sprintf(data, "[Client %d] ", numbers[from]);
            ssize_t size = recv(from, data + tag, READ_BYTES, 0);
            if (size > 0) {
                for (int i = 0; i < count; i++)
                    if (fds[i] != from) send(fds[i], data, tag + size, MSG_NOSIGNAL);
                continue;
            }
            close(from);
            for (int i = 0; i < count; i++)
                if (fds[i] == from) fds[i] = fds[--count];
        }
    }
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < MAX_FILES ? files.rlim_max : MAX_FILES;
    setrlimit(RLIMIT_NOFILE, &files);
    if (argc == 5 && !strcmp(argv[1], "limit"))
        limit(listen_on(atoi(argv[2])), atoi(argv[3]), atoi(argv[4]));
    else if (argc == 3 && !strcmp(argv[1], "loop"))
        loop(listen_on(atoi(argv[2])));
    fprintf(stderr, "usage: reference limit PORT CLIENTS BYTES | reference loop PORT\n");
    return 2;
}
