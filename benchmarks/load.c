/* The load generator: one process, raw sockets, one epoll loop, cheap enough not to be measured.
 *
 * It plays all clients of a chat: senders, who never pause or keep to a schedule, and receivers.
 * What the server speaks is given as bytes on the command line, so that every server meets the
 * same program.  Prints one JSON object.
 *
 * A message's payload is 63 bytes: '|', its kind, the sender, a number, and filler that is checked
 * where the payload is looked at:
 *
 *     |m07 000000000042rstuvwxyzabc...        m message, p probe, e the sender's last
 *
 * Nothing that a server adds contains a '|'.  In throughput runs receiver 0 is the witness: it
 * reads and checks everything (order, torn messages) and so learns how many bytes a message
 * takes here; of the others the kernel discards the bytes and says how many (MSG_TRUNC), which
 * costs next to nothing.  In latency runs everybody reads.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PAYLOAD = 63, HEADER = 17, BLOCK = 1024, MAX_STEPS = 4, MAX_SENDERS = 100 };
enum { READ_BYTES = 1 << 20, EVENTS = 1024 };
enum { BINS = 1 << 23 }; /* of a microsecond: 8.4 s */
#define PROBE_SECONDS 0.05 /* how often a broadcast is tried until everybody has got one */
#define QUIET_SECONDS 0.2

typedef struct {
    char *data;
    size_t size;
} Bytes;

typedef struct {
    int fd, step, sending, reached, stalled;
    long long bytes;           /* received since the run began */
    char carry[PAYLOAD];       /* the beginning of a payload whose rest has not come yet */
    int carried;
    char tail[16];             /* the last bytes of a handshake's answer */
    int tailed;
    char *block;               /* of a sender: BLOCK spelled messages */
    size_t written;            /* how much of the block is sent */
    long long number;          /* of the message that comes next into the block */
    int done;                  /* its end has been sent */
} Client;

static Bytes hello[2][MAX_STEPS], ready[2][MAX_STEPS], prefix, suffix; /* [0] receiver, [1] sender */
static int steps[2];
static int core = -1, port, receiver_port, receivers, senders, stalled, server_pid;
static int outstanding = 128; /* handshakes at a time: a crowd at the door, not a flood of SYNs */
static double seconds = 2, warm_up = 0.5, rate, patience = 3;
static long long count;
static Client *clients;
static int total, poller;
static char *buffer, filler[PAYLOAD];
static size_t frame; /* a message as a sender writes it */

static long long seen[MAX_SENDERS]; /* by the witness: each sender's next number */
static long long messages, disordered, torn, dead, ends;
static long long start_ns; /* of a latency run's schedule */
static unsigned *bins;
static long long samples, count_from_ns;
static double worst;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double cpu_seconds(int pid) { /* of a process; 0 is ourselves */
    if (!pid) {
        struct rusage use;
        getrusage(RUSAGE_SELF, &use);
        return use.ru_utime.tv_sec + use.ru_stime.tv_sec +
               (use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
    }
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t size = fread(line, 1, sizeof line - 1, file);
    fclose(file);
    line[size] = 0;
    long user = 0, system = 0;
    char *after_name = strrchr(line, ')');
    if (after_name) sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld",
                           &user, &system);
    return (double)(user + system) / sysconf(_SC_CLK_TCK);
}

/* --- Spelling. ------------------------------------------------------------------------------ */

static Bytes from_hex(const char *hex, size_t size) {
    Bytes bytes = {malloc(size / 2 + 1), size / 2};
    for (size_t i = 0; i < bytes.size; i++) {
        unsigned value;
        sscanf(hex + 2 * i, "%2x", &value);
        bytes.data[i] = (char)value;
    }
    return bytes;
}

/* HELLO:READY,HELLO:READY, each in hexadecimal. */
static void parse_steps(int role, const char *text) {
    while (*text && steps[role] < MAX_STEPS) {
        size_t first = strcspn(text, ":"), second = strcspn(text + first + 1, ",");
        hello[role][steps[role]] = from_hex(text, first);
        ready[role][steps[role]++] = from_hex(text + first + 1, second);
        text += first + 1 + second;
        text += *text == ',';
    }
}

static void put_number(char *place, long long number, int digits) {
    for (int i = digits - 1; i >= 0; i--, number /= 10) place[i] = (char)('0' + number % 10);
}

static long long get_number(const char *place, int digits) {
    long long number = 0;
    for (int i = 0; i < digits; i++) {
        if (place[i] < '0' || place[i] > '9') return -1;
        number = number * 10 + (place[i] - '0');
    }
    return number;
}

static void spell(char *place, char kind, int sender, long long number) {
    memcpy(place, prefix.data, prefix.size);
    place += prefix.size;
    memcpy(place, filler, PAYLOAD);
    place[1] = kind;
    put_number(place + 2, sender, 2);
    put_number(place + 5, number, 12);
    memcpy(place + PAYLOAD, suffix.data, suffix.size);
}

/* --- Looking at what comes. ----------------------------------------------------------------- */

/* Returns how much of it is dealt with: of a torn message the mark alone, for another may stand
 * in the middle of it. */
static int look_at(Client *client, const char *payload) {
    long long number = get_number(payload + 5, 12);
    int sender = (int)get_number(payload + 2, 2);
    if (number < 0 || sender < 0 || memcmp(payload + HEADER, filler + HEADER, PAYLOAD - HEADER)) {
        torn++;
        return 1;
    }
    if (payload[1] == 'p') {
        client->reached = 1;
    } else if (payload[1] == 'e') {
        ends++;
    } else if (bins) {
        double late = (now() - start_ns * 1e-9) - number * 1e-6;
        if (number * 1000 < count_from_ns) return PAYLOAD;
        long long bin = (long long)(late * 1e6);
        bins[bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin]++;
        samples++;
        if (late > worst) worst = late;
    } else {
        messages++;
        if (number < seen[sender]) disordered++;
        seen[sender] = number + 1;
    }
    return PAYLOAD;
}

static void scan(Client *client, const char *data, size_t size) {
    if (client->carried) { /* complete the payload that was cut */
        size_t missing = PAYLOAD - client->carried, some = size < missing ? size : missing;
        memcpy(client->carry + client->carried, data, some);
        client->carried += (int)some;
        if (client->carried < PAYLOAD) return;
        client->carried = 0;
        data += some, size -= some;
        if (look_at(client, client->carry) == 1) { /* look for the next one in the rest of it */
            char rest[PAYLOAD];
            memcpy(rest, client->carry + 1, PAYLOAD - 1);
            scan(client, rest, PAYLOAD - 1);
            scan(client, data, size);
            return;
        }
    }
    const char *end = data + size, *at;
    while ((at = memchr(data, '|', end - data))) {
        if (end - at < PAYLOAD) {
            client->carried = (int)(end - at);
            memcpy(client->carry, at, end - at);
            return;
        }
        data = at + look_at(client, at);
    }
}

static void bury(Client *client) {
    if (client->fd < 0) return;
    dead++;
    epoll_ctl(poller, EPOLL_CTL_DEL, client->fd, 0);
    close(client->fd);
    client->fd = -1;
}

static void want(Client *client, unsigned events) {
    struct epoll_event event = {.events = events, .data.u32 = (unsigned)(client - clients)};
    epoll_ctl(poller, EPOLL_CTL_MOD, client->fd, &event);
}

static void receive(Client *client, int look) {
    ssize_t size = recv(client->fd, buffer, READ_BYTES, look ? 0 : MSG_TRUNC);
    if (size > 0) {
        client->bytes += size;
        if (look) scan(client, buffer, size);
    } else if (size == 0 || (errno != EAGAIN && errno != EINTR)) {
        bury(client);
    }
}

/* --- Coming in. ----------------------------------------------------------------------------- */

static int role_of(const Client *client) { return client - clients >= receivers; }

static void begin(Client *client) {
    int to = role_of(client) || !receiver_port ? port : receiver_port;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(to)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0) fail("socket");
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (void *)&address, sizeof address) && errno != EINPROGRESS) fail("connect");
    struct epoll_event event = {EPOLLOUT, {.u32 = (unsigned)(client - clients)}};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
}

/* Say the next hello; '#####' in it is the client's number.  Returns whether there was one. */
static int greet(Client *client) {
    int role = role_of(client);
    if (client->step == steps[role]) return 0;
    Bytes words = hello[role][client->step];
    char *copy = malloc(words.size + 1), *hash;
    memcpy(copy, words.data, words.size);
    while ((hash = memmem(copy, words.size, "#####", 5))) put_number(hash, client - clients, 5);
    if (send(client->fd, copy, words.size, MSG_NOSIGNAL) != (ssize_t)words.size) fail("hello");
    free(copy);
    client->tailed = 0;
    return 1;
}

/* Read an answer; returns whether the client is in. */
static int progress(Client *client, unsigned events) {
    if (events & EPOLLOUT) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) errno = error, fail("connect");
        want(client, EPOLLIN);
        return !greet(client);
    }
    char *into = buffer + client->tailed;
    memcpy(buffer, client->tail, client->tailed);
    ssize_t size = recv(client->fd, into, READ_BYTES - client->tailed, 0);
    if (size == 0) fprintf(stderr, "load: the server closed a connection\n"), exit(1);
    if (size < 0) return errno == EAGAIN ? 0 : (fail("handshake"), 0);
    Bytes answer = ready[role_of(client)][client->step];
    size_t held = client->tailed + size;
    if (memmem(buffer, held, answer.data, answer.size)) {
        client->step++;
        return !greet(client);
    }
    size_t keep = held < sizeof client->tail ? held : sizeof client->tail;
    memcpy(client->tail, buffer + held - keep, keep);
    client->tailed = (int)keep;
    return 0;
}

static void come_in(double deadline) {
    struct epoll_event events[EVENTS];
    char *in = calloc(total, 1);
    int begun = 0, finished = 0;
    while (finished < total) {
        for (; begun < total && begun - finished < outstanding; begun++) begin(&clients[begun]);
        int n = epoll_wait(poller, events, EVENTS, 100);
        for (int k = 0; k < n; k++) {
            Client *client = &clients[events[k].data.u32];
            if (in[client - clients]) {
                receive(client, 0);
            } else if (progress(client, events[k].events)) {
                in[client - clients] = 1;
                finished++;
            }
        }
        if (now() > deadline) fprintf(stderr, "load: %d of %d came in\n", finished, total), exit(1);
    }
    free(in);
}

/* Until everybody has got a broadcast: then all are in, whatever the server says or doesn't. */
static void probe(double deadline) {
    struct epoll_event events[EVENTS];
    Client *sender = &clients[receivers];
    char message[4096];
    double last = 0;
    for (int waiting = receivers; waiting;) {
        double t = now();
        if (senders && t - last > PROBE_SECONDS) {
            spell(message, 'p', 0, 0);
            if (send(sender->fd, message, frame, MSG_NOSIGNAL) != (ssize_t)frame) fail("probe");
            last = t;
        }
        int n = epoll_wait(poller, events, EVENTS, 10);
        for (int k = 0; k < n; k++) {
            Client *client = &clients[events[k].data.u32];
            int before = client->reached;
            receive(client, !role_of(client));
            if (!senders && client->bytes) client->reached = 1;
            waiting -= !role_of(client) && client->reached && !before;
        }
        if (dead) fprintf(stderr, "load: the server closed a connection\n"), exit(1);
        if (t > deadline) fprintf(stderr, "load: %d got no broadcast\n", waiting), exit(1);
    }
}

static void settle(void) {
    struct epoll_event events[EVENTS];
    int n;
    while ((n = epoll_wait(poller, events, EVENTS, (int)(QUIET_SECONDS * 1000))) > 0)
        for (int k = 0; k < n; k++) receive(&clients[events[k].data.u32], 0);
}

/* One message, whole or not at all; returns whether it went. */
static int send_whole(const Client *sender, const char *message) {
    ssize_t size = send(sender->fd, message, frame, MSG_NOSIGNAL);
    if (size < 0 && errno == EAGAIN) return 0;
    if (size != (ssize_t)frame) fail("send");
    return 1;
}

/* --- Throughput: senders that never pause, until the time or the count is over. ------------- */

static void fill(Client *sender) {
    int index = (int)(sender - clients) - receivers;
    for (int i = 0; i < BLOCK; i++)
        spell(sender->block + i * frame, 'm', index, sender->number++);
    sender->written = 0;
}

static void flood(Client *sender, int stop) {
    if (sender->done) return;
    size_t size = BLOCK * frame, left = size - sender->written;
    int part = (int)(sender->written % frame);
    long long whole = sender->number - BLOCK + (long long)(sender->written / frame);
    if (count && whole + BLOCK > count) { /* the last block is not whole */
        long long rest = (count - whole) * (long long)frame - part;
        left = rest < (long long)left ? (size_t)rest : left;
    }
    if (stop) left = part ? frame - part : 0;
    if (!left) {
        char end[4096];
        spell(end, 'e', (int)(sender - clients) - receivers, whole);
        if (send_whole(sender, end)) {
            sender->done = 1;
            sender->number = whole;
            want(sender, EPOLLIN);
        }
        return;
    }
    ssize_t size_sent = send(sender->fd, sender->block + sender->written, left, MSG_NOSIGNAL);
    if (size_sent > 0) sender->written += size_sent;
    else if (errno != EAGAIN) bury(sender);
    if (sender->written == size) fill(sender);
}

static long long received(void) {
    long long bytes = 0;
    for (int i = 0; i < receivers; i++) bytes += clients[i].bytes;
    return bytes;
}

static int all_have(long long bytes) {
    for (int i = 0; i < receivers; i++)
        if (clients[i].fd >= 0 && !clients[i].stalled && clients[i].bytes < bytes) return 0;
    return 1;
}

static void run_throughput(void) {
    struct epoll_event events[EVENTS];
    for (int i = receivers; i < total; i++) {
        clients[i].block = malloc(BLOCK * frame);
        fill(&clients[i]);
        want(&clients[i], EPOLLIN | EPOLLOUT);
    }
    for (int i = receivers - stalled; i < receivers; i++) {
        clients[i].stalled = 1;
        epoll_ctl(poller, EPOLL_CTL_DEL, clients[i].fd, 0);
    }
    double start = now(), from = 0, to = 0, last = start, ours = 0, theirs = 0;
    long long base = 0, witness_end = 0, window = 0, before = 0;
    for (;;) {
        double t = now();
        if (!from && t >= start + (count ? 0 : warm_up)) {
            from = t, base = received();
            ours = cpu_seconds(0), theirs = cpu_seconds(server_pid);
        }
        if (from && !to && !count && t >= from + seconds) {
            to = t, window = received() - base;
            ours = cpu_seconds(0) - ours, theirs = cpu_seconds(server_pid) - theirs;
        }
        if (senders && ends >= senders && !witness_end) witness_end = clients[0].bytes;
        if (witness_end && all_have(witness_end)) break;
        if (to && (!senders || t > to + patience)) break;
        if (count && t > start + seconds) break;
        if (clients[0].fd < 0) break; /* nobody left to say what came */
        if (t > last + 2 && to) break; /* nothing moves any more */
        int n = epoll_wait(poller, events, EVENTS, 50);
        for (int k = 0; k < n; k++) {
            Client *client = &clients[events[k].data.u32];
            if (client->fd < 0) continue;
            if (events[k].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                receive(client, client == clients);
            if (client->fd >= 0 && events[k].events & EPOLLOUT && role_of(client))
                flood(client, to > 0);
        }
        if (n && received() != before) before = received(), last = now();
    }
    double finished = now();
    if (count || !to) {
        to = finished, window = received() - base;
        ours = cpu_seconds(0) - ours, theirs = cpu_seconds(server_pid) - theirs;
    }
    long long sent = 0;
    for (int i = receivers; i < total; i++)
        sent += clients[i].done ? clients[i].number
                                : clients[i].number - BLOCK + (long long)(clients[i].written / frame);
    int drained = witness_end && all_have(witness_end);
    double size = messages ? (double)clients[0].bytes / (messages + torn + ends) : 0;
    double wanted = (double)(sent + senders) * (receivers - stalled), got = 0, least = 1e18;
    for (int i = 0; i < receivers - stalled; i++) {
        got += clients[i].bytes;
        if (clients[i].bytes < least) least = clients[i].bytes;
    }
    printf("{\"deliveries_per_second\": %.1f, \"bytes_per_second\": %.1f, \"sent\": %lld, "
           "\"drained\": %s, \"lost\": %.0f, \"disordered\": %lld, \"torn\": %lld, \"dead\": %lld, "
           "\"seconds\": %.4f, \"least_share\": %.5f, "
           "\"load_cpu\": %.4f, \"server_cpu\": %.4f, \"message_bytes\": %.3f}\n",
           size ? window / size / (to - from) : 0, window / (to - from), sent,
           drained ? "true" : "false", size && senders ? wanted - got / size : 0, disordered, torn,
           dead, finished - start, size && sent ? least / size / ((count ? count * senders : sent) + senders) : 0,
           ours / (to - from), theirs / (to - from), size);
}

/* --- Latency: messages at scheduled times, so that waiting to be sent counts too. ------------ */

/* Of all that was to come, so that what was lost counts as later than everything that came. */
static double percentile(double share, long long wanted) {
    long long rank = (long long)(share * wanted), sum = 0;
    for (int i = 0; i < BINS; i++)
        if ((sum += bins[i]) > rank) return i / 1e3;
    return worst * 1e3;
}

static void run_latency(void) {
    struct epoll_event events[EVENTS];
    struct timespec wait;
    Client *sender = &clients[receivers];
    char message[4096];
    bins = calloc(BINS, sizeof *bins);
    double start = now() + 0.01, ours = cpu_seconds(0), theirs = cpu_seconds(server_pid);
    start_ns = (long long)(start * 1e9);
    count_from_ns = (long long)(warm_up * 1e9);
    long long planned = (long long)((warm_up + seconds) * rate), next = 0, first = 0;
    while (first / rate < warm_up) first++;
    long long wanted = (planned - first) * receivers;
    double last_due = start + planned / rate;
    while (samples < wanted && now() < last_due + patience) {
        double due = start + next / rate, left;
        while (next < planned && (left = due - now()) <= 0) {
            spell(message, 'm', 0, (long long)((due - start) * 1e6 + 0.5));
            if (!send_whole(sender, message)) break; /* it goes on waiting, and that counts */
            due = start + ++next / rate;
        }
        left = next < planned ? due - now() : 0.05;
        if (left < 0) left = 0.0001;
        wait.tv_sec = 0, wait.tv_nsec = (long)(left * 1e9) % 1000000000;
        int n = epoll_pwait2(poller, events, EVENTS, &wait, 0);
        for (int k = 0; k < n; k++) {
            Client *client = &clients[events[k].data.u32];
            if (client->fd >= 0) receive(client, !role_of(client));
            if (next < planned && now() >= due) { /* the schedule goes before our reading */
                spell(message, 'm', 0, (long long)((due - start) * 1e6 + 0.5));
                if (send_whole(sender, message)) due = start + ++next / rate;
            }
        }
    }
    double took = now() - start;
    if (!samples) fprintf(stderr, "load: nothing arrived\n"), exit(1);
    printf("{\"p50\": %.4f, \"p99\": %.4f, \"p999\": %.4f, \"max\": %.4f, \"samples\": %lld, "
           "\"lost\": %lld, \"dead\": %lld, \"load_cpu\": %.4f, \"server_cpu\": %.4f}\n",
           percentile(0.5, wanted), percentile(0.99, wanted), percentile(0.999, wanted), worst * 1e3, samples,
           wanted - samples, dead, (cpu_seconds(0) - ours) / took,
           (cpu_seconds(server_pid) - theirs) / took);
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    for (int i = 2; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) return fprintf(stderr, "load: %s is not name=value\n", argv[i]), 2;
        *value++ = 0;
        const char *name = argv[i];
        if (!strcmp(name, "port")) port = atoi(value);
        else if (!strcmp(name, "receiver_port")) receiver_port = atoi(value);
        else if (!strcmp(name, "receivers")) receivers = atoi(value);
        else if (!strcmp(name, "senders")) senders = atoi(value);
        else if (!strcmp(name, "stalled")) stalled = atoi(value);
        else if (!strcmp(name, "core")) core = atoi(value);
        else if (!strcmp(name, "outstanding")) outstanding = atoi(value);
        else if (!strcmp(name, "seconds")) seconds = atof(value);
        else if (!strcmp(name, "rate")) rate = atof(value);
        else if (!strcmp(name, "count")) count = atoll(value);
        else if (!strcmp(name, "pid")) server_pid = atoi(value);
        else if (!strcmp(name, "receiver")) parse_steps(0, value);
        else if (!strcmp(name, "sender")) parse_steps(1, value);
        else if (!strcmp(name, "prefix")) prefix = from_hex(value, strlen(value));
        else if (!strcmp(name, "suffix")) suffix = from_hex(value, strlen(value));
        else return fprintf(stderr, "load: unknown %s\n", name), 2;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    if (core >= 0) { /* our own: else the scheduler puts us beside whoever wakes us, and we are */
        cpu_set_t ours; /* not able to read what the server writes until it is through */
        CPU_ZERO(&ours);
        CPU_SET(core, &ours);
        if (sched_setaffinity(0, sizeof ours, &ours)) fail("sched_setaffinity");
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    total = receivers + senders;
    clients = calloc(total, sizeof *clients);
    buffer = malloc(READ_BYTES);
    frame = prefix.size + PAYLOAD + suffix.size;
    poller = epoll_create1(0);
    for (int i = 0; i < PAYLOAD; i++) filler[i] = (char)('a' + i % 26);
    filler[0] = '|', filler[4] = ' ';

    double start = now(), deadline = start + 60;
    come_in(deadline);
    double came_in = now();
    probe(deadline);
    double reached = now();
    if (!strcmp(mode, "connections")) {
        printf("{\"connected_seconds\": %.4f, \"reached_seconds\": %.4f}\n", came_in - start,
               reached - start);
        fflush(stdout);
        settle();
        return getchar() == EOF; /* whoever weighs the server says when it has */
    }
    if (senders) settle();
    for (int i = 0; i < total; i++) clients[i].bytes = 0;
    messages = disordered = torn = 0;
    if (!strcmp(mode, "throughput")) run_throughput();
    else if (!strcmp(mode, "latency")) run_latency();
    else return fprintf(stderr, "load: unknown mode %s\n", mode), 2;
    return 0;
}
