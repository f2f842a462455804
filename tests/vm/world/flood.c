/*
 * Clients and upstreams that try to exhaust a proxy's memory, and a probe that measures the proxy meanwhile.
 * C11, Linux, epoll, no libraries. All counts and times are bounded.
 *
 *   flood attack ADDRESS [OPTION...]   many equal connections, which are reset at the end; prints one JSON object
 *   flood serve ADDRESS [OPTION...]    an HTTP/1.1 upstream whose answer depends on the path
 *   flood watch ADDRESS [OPTION...]    sends a request every 200 ms, samples a cgroup; prints one JSON object
 *
 * ADDRESS is IPV4:PORT or unix:PATH; `serve` also takes IPV4:FIRST-LAST.
 * Common option: --seconds N (default 10, at most 3,600).
 *
 * attack, the connections:
 *   --clients N       connections at a time (default 1, at most 12,000)
 *   --total N         connections in all (default: --clients); 0 = a new one for each that has ended
 *   --rate N          new connections a second (default: all at once)
 *   --rcvbuf BYTES    SO_RCVBUF of each
 *   --from IPV4       the source address
 *   --stay MS         closes each connection after this time
 * attack, the request:
 *   --mute            sends nothing
 *   --path TEXT       default /good; --path-bytes N and --host-bytes N lengthen the path and the Host
 *   --paths N         uses N paths in turn: each is --path and a number from 0 on
 *   --close           sends `Connection: close`
 *   --upgrade         asks for a WebSocket; with --frames endless bytes follow
 *   --fields          sends endless header fields
 *   --body BYTES      a POST with this Content-Length
 *   --pace BYTES      bytes a second after the head (default: as many as are accepted)
 *   --send FILE       sends these bytes in place of a request; what is answered is not understood
 *   --repeat FILE     with --send: sends these bytes without end behind them
 *   --finish          ends when every connection has its complete answer
 *   --again           sends the request again after each complete answer
 * attack, the answer:
 *   --read BYTES      bytes a second that are read (default: all); 0 = none, the status is only peeked
 *   --take BYTES      stops reading after this number of bytes
 *   --leave fin|reset after that: a half-close, or a reset and another connection (default: stays open)
 *
 * serve, by the first words of the path (the rest is ignored):
 *   good              200 and two bytes               body/BYTES       200 and BYTES bytes
 *   head/KB           200 with a head of KB kB        stall/KB         like head/KB, but the head never ends
 *   hints/BYTES/N     N 103s of BYTES, then nothing more (0 = endless)
 *   drain             reads the body, then 200        sink             reads and sends nothing more
 *   early             403 before the body was read    silent           reads, sends nothing
 *   ws/flood          101, then endless bytes         ws/sink          101, then reads nothing more
 *   ws/silent         101, then reads, sends nothing
 *   --tls BYTES       sends the TLS 1.2 messages up to a certificate of this size, unencrypted, and nothing more
 *
 * watch:
 *   --good PATH       also asks for this path, besides /health
 *   --cgroup DIR      records the maximum of memory.current, and of sock, kernel, anon and file in memory.stat
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MOST_CLIENTS = 12000,
    MOST_SECONDS = 3600,
    MOST_PATHS = 1000,
    DESCRIPTORS = 32768,
    LINE = 256,          /* bytes of a head's line that are kept */
    TICK = 20,           /* milliseconds between two calls of a tick function */
    PROBE = 200,         /* milliseconds between two requests of `watch` */
    PATIENCE = 15000,    /* milliseconds that `watch` waits for an answer */
    BLOCK = 16384,
};

static const uint64_t ENDLESS = UINT64_MAX / 2;

static char block[BLOCK]; /* filler bytes */
static char scrap[BLOCK]; /* bytes that were read */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now(void) /* milliseconds */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- addresses ---- */

struct address {
    struct sockaddr_storage at;
    socklen_t length;
    int first, last; /* ports */
};

static struct address address_of(const char *text)
{
    struct address a = {.length = 0};
    if (strncmp(text, "unix:", 5) == 0) {
        struct sockaddr_un *u = (struct sockaddr_un *)&a.at;
        u->sun_family = AF_UNIX;
        snprintf(u->sun_path, sizeof u->sun_path, "%s", text + 5);
        a.length = sizeof *u;
        return a;
    }
    char host[LINE];
    if (sscanf(text, "%255[^:]:%d-%d", host, &a.first, &a.last) < 2) {
        fprintf(stderr, "no address: %s\n", text);
        exit(2);
    }
    if (a.last < a.first)
        a.last = a.first;
    struct sockaddr_in *in = (struct sockaddr_in *)&a.at;
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = inet_addr(host);
    a.length = sizeof *in;
    return a;
}

static void set_port(struct address *a, int port)
{
    if (a->at.ss_family == AF_INET)
        ((struct sockaddr_in *)&a->at)->sin_port = htons((uint16_t)port);
}

/* ---- message heads ---- */

/* A head, read byte by byte: its first line, and the fields that matter here. */
struct head {
    char first[LINE], line[LINE];
    size_t length;
    bool begun;
    uint64_t body; /* Content-Length */
};

/* Takes one byte; true where the head is complete. */
static bool head_take(struct head *h, char byte)
{
    if (byte != '\n') {
        if (byte != '\r' && h->length < LINE - 1)
            h->line[h->length++] = byte;
        return false;
    }
    h->line[h->length] = 0;
    bool empty = h->length == 0;
    h->length = 0;
    if (!h->begun) {
        h->begun = !empty;
        memcpy(h->first, h->line, LINE);
        return false;
    }
    if (strncasecmp(h->line, "content-length:", 15) == 0)
        h->body = strtoull(h->line + 15, NULL, 10);
    return empty;
}

/* ---- what is sent ---- */

/* `text`, repeated until `left` bytes are sent. */
struct piece {
    const char *text;
    size_t length, at;
    uint64_t left;
};

struct output {
    struct piece pieces[4];
    int count, next;
    uint64_t sent;
};

static void output_add(struct output *o, const char *text, size_t length, uint64_t bytes)
{
    o->pieces[o->count++] = (struct piece){.text = text, .length = length, .left = bytes};
}

static void output_text(struct output *o, const char *text)
{
    output_add(o, text, strlen(text), strlen(text));
}

/* Sends up to `allowed` bytes. 1: everything is sent; 0: there is more to send; -1: the connection is closed. */
static int output_send(struct output *o, int fd, uint64_t allowed)
{
    while (o->next < o->count) {
        struct piece *p = &o->pieces[o->next];
        if (p->left == 0) {
            o->next++;
            continue;
        }
        uint64_t size = p->length - p->at;
        size = size < p->left ? size : p->left;
        size = size < allowed ? size : allowed;
        if (size == 0)
            return 0;
        ssize_t n = send(fd, p->text + p->at, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR || errno == ENOTCONN ? 0 : -1;
        o->sent += (uint64_t)n;
        allowed -= (uint64_t)n;
        p->left -= (uint64_t)n;
        p->at = (p->at + (size_t)n) % p->length;
    }
    return 1;
}

/* ---- connections ---- */

struct connection {
    int fd;
    long number; /* its number in an attack */
    bool listens, joined, said, stopped; /* joined: connect() is done; said: a status was counted; stopped: reads no more */
    struct head head;
    bool in_body;
    uint64_t left;              /* bytes of body that are still to come */
    struct output head_out, out; /* out is what --pace slows down */
    int64_t since;
    uint64_t received;
    bool upgraded, sinks;
    unsigned hints;             /* 103s that are still to be sent, */
    uint64_t hint;              /* and the size of each */
    char text[64];              /* a line of this connection in `out` */
    int kind;                   /* of a probe: HEALTH or GOOD */
};

static struct connection *table[DESCRIPTORS];
static int poller;
static int64_t start, end;

static struct connection *adopt(int fd)
{
    if (fd >= DESCRIPTORS)
        exit((fprintf(stderr, "too many descriptors\n"), 1));
    struct connection *c = calloc(1, sizeof *c);
    if (!c)
        die("calloc");
    c->fd = fd;
    c->since = now();
    table[fd] = c;
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e) < 0)
        die("epoll_ctl");
    return c;
}

static void discard(struct connection *c)
{
    table[c->fd] = NULL;
    close(c->fd);
    free(c);
}

/* A connection under way, or -1. */
static int reach(const struct address *to, const char *from, int rcvbuf)
{
    int fd = socket(to->at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int on = 1;
    if (to->at.ss_family == AF_INET)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (rcvbuf)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof rcvbuf);
    if (from) {
        struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(from)};
        if (bind(fd, (struct sockaddr *)&source, sizeof source) < 0)
            die(from);
    }
    if (connect(fd, (const struct sockaddr *)&to->at, to->length) < 0 && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Calls `ready` for what epoll reports and `tick` every TICK milliseconds, until the time is over or `tick` returns false. */
static void loop(void (*ready)(struct connection *, uint32_t), bool (*tick)(void))
{
    struct epoll_event events[256];
    int64_t next = now();
    for (;;) {
        int64_t wait = next - now();
        int n = epoll_wait(poller, events, 256, wait > 0 ? (int)wait : 0);
        for (int i = 0; i < n; i++)
            if (table[events[i].data.fd])
                ready(table[events[i].data.fd], events[i].events);
        if (now() < next)
            continue;
        next = now() + TICK;
        if (!tick())
            return;
    }
}

/* ---- attack ---- */

static struct {
    struct address to;
    long clients, total, rate, rcvbuf, stay, path_bytes, host_bytes, paths;
    const char *path, *from, *leave;
    bool mute, close, upgrade, fields, frames, again, finish, has_total;
    uint64_t body, pace, read, take;
    struct { char *bytes; size_t length; } send, repeat;
} plan = {.clients = 1, .paths = 1, .path = "/good", .pace = UINT64_MAX, .read = UINT64_MAX, .take = UINT64_MAX};

static struct {
    long open, opened, refused, reset, ended, complete, cut, most;
    long status[600];
    uint64_t sent, received;
} seen;

static char *requests[MOST_PATHS];

/* Reads a file; the program ends where it cannot. */
static char *contents(const char *path, size_t *length)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat file;
    if (fd < 0 || fstat(fd, &file) < 0)
        die(path);
    *length = (size_t)file.st_size;
    char *bytes = malloc(*length + 1);
    if (!bytes)
        die("malloc");
    for (size_t at = 0; at < *length;) {
        ssize_t n = read(fd, bytes + at, *length - at);
        if (n <= 0)
            die(path);
        at += (size_t)n;
    }
    close(fd);
    return bytes;
}

static void write_request(long number)
{
    char part[32] = "";
    if (plan.paths > 1)
        snprintf(part, sizeof part, "%ld", number);
    char *path = calloc(1, (size_t)plan.path_bytes + 1), *host = calloc(1, (size_t)plan.host_bytes + 1);
    if (!path || !host)
        die("calloc");
    memset(path, 'a', (size_t)plan.path_bytes);
    memset(host, 'a', (size_t)plan.host_bytes);
    char length[64] = "";
    if (plan.body)
        snprintf(length, sizeof length, "Content-Length: %llu\r\n", (unsigned long long)plan.body);
    const char *upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    if (asprintf(&requests[number], "%s %s%s%s HTTP/1.1\r\nHost: flood%s\r\n%s%s%s%s", plan.body ? "POST" : "GET", plan.path, part, path, host, length,
                 plan.close ? "Connection: close\r\n" : "", plan.upgrade ? upgrade : "", plan.fields ? "" : "\r\n") < 0)
        die("asprintf");
    free(path);
    free(host);
}

static void ask(struct connection *c)
{
    static char field[LINE];
    c->head = (struct head){0};
    c->in_body = false;
    c->head_out = c->out = (struct output){0};
    c->since = now();
    c->received = 0;
    if (plan.mute)
        return;
    if (plan.send.bytes) {
        /* --pace slows down what is in `out` */
        output_add(plan.pace == UINT64_MAX ? &c->head_out : &c->out, plan.send.bytes, plan.send.length, plan.send.length);
        if (plan.repeat.length)
            output_add(&c->out, plan.repeat.bytes, plan.repeat.length, ENDLESS);
        return;
    }
    output_text(&c->head_out, requests[c->number % plan.paths]);
    if (plan.fields) {
        int n = snprintf(field, sizeof field, "X-More: %0200d\r\n", 0);
        output_add(&c->out, field, (size_t)n, ENDLESS);
    }
    if (plan.body || plan.frames)
        output_add(&c->out, block, BLOCK, plan.frames ? ENDLESS : plan.body);
}

static bool may_open(void)
{
    long due = plan.rate ? plan.rate * (now() - start) / 1000 : plan.clients + seen.opened;
    return seen.open < plan.clients && (plan.total == 0 || seen.opened < plan.total) && seen.opened < due;
}

static void open_more(void)
{
    for (int i = 0; i < 500 && may_open(); i++) {
        int fd = reach(&plan.to, plan.from, (int)plan.rcvbuf);
        if (fd < 0) {
            seen.refused++;
            return;
        }
        struct connection *c = adopt(fd);
        c->number = seen.opened++;
        seen.open++;
        seen.most = seen.open > seen.most ? seen.open : seen.most;
        ask(c);
    }
}

static void leave(struct connection *c, bool reset)
{
    if (reset) {
        struct linger now_ = {.l_onoff = 1};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now_, sizeof now_);
    }
    seen.sent += c->head_out.sent + c->out.sent;
    seen.open--;
    discard(c);
}

static void count_status(struct connection *c, const char *line)
{
    int status = atoi(line + 9);
    if (status >= 100 && status < 600)
        seen.status[status]++;
    c->said = true;
}

/* Parses bytes of an answer; true when it is complete. */
static bool take_answer(struct connection *c, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (c->in_body) {
            size_t some = n - i < c->left ? n - i : (size_t)c->left;
            c->left -= some;
            return c->left == 0;
        }
        if (!head_take(&c->head, bytes[i]))
            continue;
        count_status(c, c->head.first);
        int status = atoi(c->head.first + 9);
        c->left = c->head.body;
        c->head = (struct head){0};
        if (status == 101)
            c->left = ENDLESS;
        c->in_body = status == 101 || status >= 200;
        if (c->in_body && c->left == 0)
            return true;
    }
    return false;
}

/* Called when --take bytes were read. False: the connection is closed. */
static bool enough(struct connection *c)
{
    bool reset = plan.leave && strcmp(plan.leave, "reset") == 0;
    c->stopped = true;
    if (reset)
        leave(c, true);
    else if (plan.leave)
        shutdown(c->fd, SHUT_WR);
    return !reset;
}

/* Reads what the plan allows. False: the connection is closed. */
static bool read_answer(struct connection *c, uint32_t events)
{
    char line[13] = "";
    if (plan.read == 0 && !c->said && recv(c->fd, line, 12, MSG_PEEK | MSG_DONTWAIT) == 12)
        count_status(c, line);
    if (plan.read == 0 || c->stopped) { /* a half-close by the proxy is ignored: the rest stays unread */
        bool gone = events & (EPOLLERR | EPOLLHUP);
        if (gone) {
            seen.reset++;
            leave(c, false);
        }
        return !gone;
    }
    while (!c->stopped) {
        uint64_t allowed = plan.take - c->received, size = BLOCK;
        if (plan.read != UINT64_MAX) {
            uint64_t by_now = plan.read * (uint64_t)(now() - c->since) / 1000;
            size = by_now > c->received ? by_now - c->received : 0;
        }
        size = size < allowed ? size : allowed;
        size = size < BLOCK ? size : BLOCK;
        if (size == 0)
            break;
        ssize_t n = recv(c->fd, scrap, size, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOTCONN))
            break;
        if (n <= 0) {
            *(n < 0 ? &seen.reset : c->in_body || c->head.begun ? &seen.cut : &seen.ended) += 1;
            leave(c, false);
            return false;
        }
        c->received += (uint64_t)n;
        seen.received += (uint64_t)n;
        if (!plan.send.bytes && take_answer(c, scrap, (size_t)n)) {
            seen.complete++;
            seen.sent += c->head_out.sent + c->out.sent;
            ask(c);
            if (!plan.again)
                c->head_out.count = c->out.count = 0;
        }
        if (c->received >= plan.take)
            return enough(c);
    }
    return true;
}

static void attack_ready(struct connection *c, uint32_t events)
{
    if (events & EPOLLOUT && !c->joined) {
        c->joined = true;
        c->since = now();
    }
    if (!read_answer(c, events))
        return;
    int done = output_send(&c->head_out, c->fd, UINT64_MAX);
    if (done == 1 && !(plan.upgrade && !c->said)) {
        uint64_t allowed = UINT64_MAX;
        if (plan.pace != UINT64_MAX) {
            uint64_t by_now = plan.pace * (uint64_t)(now() - c->since) / 1000;
            allowed = by_now > c->out.sent ? by_now - c->out.sent : 0;
        }
        done = output_send(&c->out, c->fd, allowed);
    }
    /* after a failed send there may still be an answer to read: epoll reports the error later */
    if (done < 0 && (events & (EPOLLERR | EPOLLHUP))) {
        seen.reset++;
        leave(c, false);
    }
}

static bool attack_tick(void)
{
    bool paced = plan.pace != UINT64_MAX || (plan.read != UINT64_MAX && plan.read != 0) || plan.stay;
    for (int fd = 0; paced && fd < DESCRIPTORS; fd++) {
        struct connection *c = table[fd];
        if (c && plan.stay && now() - c->since > plan.stay)
            leave(c, true);
        else if (c && c->joined)
            attack_ready(c, 0);
    }
    open_more();
    return now() < end && !(plan.finish && seen.complete >= plan.total);
}

static void attack(void)
{
    if (!plan.has_total)
        plan.total = plan.clients;
    for (long i = 0; i < plan.paths; i++)
        write_request(i);
    loop(attack_ready, attack_tick);
    long open_at_the_end = seen.open;
    for (int fd = 0; fd < DESCRIPTORS; fd++)
        if (table[fd])
            leave(table[fd], true); /* after a plain close the proxy would see the end only behind the bytes that it has not read */
    printf("{\"opened\": %ld, \"refused\": %ld, \"most\": %ld, \"open\": %ld, \"complete\": %ld, \"cut\": %ld, \"ended\": %ld, \"reset\": %ld, "
           "\"sent\": %llu, \"received\": %llu, \"answers\": {",
           seen.opened, seen.refused, seen.most, open_at_the_end, seen.complete, seen.cut, seen.ended, seen.reset, (unsigned long long)seen.sent,
           (unsigned long long)seen.received);
    const char *comma = "";
    for (int i = 100; i < 600; i++)
        if (seen.status[i]) {
            printf("%s\"%d\": %ld", comma, i, seen.status[i]);
            comma = ", ";
        }
    printf("}}\n");
}

/* ---- serve ---- */

static char cookie[512];  /* one long header field */
static char *certificate; /* ServerHello and Certificate */
static size_t certificate_length;

/* The TLS 1.2 messages up to the certificate need no cryptography: RFC 5246 sections 6.2.1, 7.4.1.3 and 7.4.2. */
static void write_certificate(size_t bytes)
{
    static const unsigned char hello[] = {2, 0, 0, 38, 3, 3, [38] = 0, [39] = 0xc0, [40] = 0x2f, [41] = 0};
    size_t list = bytes + 3, message = list + 3;
    unsigned char *flight = calloc(1, sizeof hello + 4 + message);
    certificate = calloc(1, sizeof hello + message + 4096);
    if (!flight || !certificate)
        die("calloc");
    memcpy(flight, hello, sizeof hello);
    unsigned char *at = flight + sizeof hello;
    *at++ = 11;
    for (int level = 0; level < 3; level++) {
        size_t size = level == 0 ? message : level == 1 ? list : bytes;
        *at++ = (unsigned char)(size >> 16);
        *at++ = (unsigned char)(size >> 8);
        *at++ = (unsigned char)size;
    }
    size_t whole = sizeof hello + 4 + message;
    for (size_t done = 0, some; done < whole; done += some) {
        some = whole - done < BLOCK ? whole - done : BLOCK;
        char record[] = {22, 3, 3, (char)(some >> 8), (char)some};
        memcpy(certificate + certificate_length, record, 5);
        memcpy(certificate + certificate_length + 5, flight + done, some);
        certificate_length += some + 5;
    }
    free(flight);
}

static void add_hint(struct connection *c)
{
    c->out = (struct output){0};
    output_text(&c->out, "HTTP/1.1 103 Early Hints\r\nLink: <");
    output_add(&c->out, block, BLOCK, c->hint);
    output_text(&c->out, ">\r\n\r\n");
}

/* Answers the request whose head is complete. */
static void answer(struct connection *c)
{
    char word[LINE] = "";
    unsigned long long first = 0, second = 0;
    const char *path = strchr(c->head.first, ' ');
    sscanf(path ? path + 1 : "", "/%250[a-z]/%llu/%llu", word, &first, &second);
    bool flood = strstr(c->head.first, "ws/flood"), sink = strstr(c->head.first, "ws/sink");
    struct output *o = &c->out;
    *o = (struct output){0};
    if (strcmp(word, "ws") == 0) {
        output_text(o, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n");
        if (flood)
            output_add(o, block, BLOCK, ENDLESS);
        c->upgraded = true;
        c->sinks = sink;
    } else if (strcmp(word, "body") == 0) {
        snprintf(c->text, sizeof c->text, "Content-Length: %llu\r\n\r\n", first);
        output_text(o, "HTTP/1.1 200 OK\r\n");
        output_text(o, c->text);
        output_add(o, block, BLOCK, first);
    } else if (strcmp(word, "head") == 0 || strcmp(word, "stall") == 0) {
        output_text(o, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n");
        output_add(o, cookie, strlen(cookie), first * 1024 / strlen(cookie) * strlen(cookie));
        output_text(o, word[0] == 'h' ? "\r\nok" : "X");
        c->sinks = word[0] == 's';
    } else if (strcmp(word, "hints") == 0) {
        c->hints = second ? (unsigned)second - 1 : UINT32_MAX;
        c->hint = first;
        add_hint(c);
        c->upgraded = true; /* what is received is not a request */
    } else if (strcmp(word, "early") == 0) {
        output_text(o, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        c->upgraded = true;
    } else if (strcmp(word, "sink") == 0) {
        c->sinks = true;
    } else if (strcmp(word, "silent") == 0) {
        c->upgraded = true;
    } else {
        output_text(o, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
}

/* True for the answers that wait for the body to be read. */
static bool reads_body_first(const struct connection *c)
{
    const char *path = strchr(c->head.first, ' ');
    return path && (strncmp(path, " /drain", 7) == 0 || strncmp(path, " /good", 6) == 0);
}

static bool serve_bytes(struct connection *c, const char *bytes, size_t n)
{
    for (size_t i = 0; i < n && !c->upgraded; i++) {
        if (c->in_body) {
            size_t some = n - i < c->left ? n - i : (size_t)c->left;
            c->left -= some;
            i += some - 1;
        } else if (head_take(&c->head, bytes[i])) {
            c->in_body = true;
            c->left = c->head.body;
            if (!reads_body_first(c))
                answer(c);
        }
        if (c->in_body && c->left == 0) {
            if (reads_body_first(c))
                answer(c);
            c->head = (struct head){0};
            c->in_body = false;
        }
    }
    return true;
}

static void serve_accept(struct connection *listener)
{
    int fd;
    while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* fails on a unix socket, which does not need it */
        adopt(fd);
    }
}

static void serve_ready(struct connection *c, uint32_t events)
{
    (void)events;
    if (c->listens) {
        serve_accept(c);
        return;
    }
    for (bool more = true; more;) {
        int done = output_send(&c->out, c->fd, UINT64_MAX);
        if (done < 0) {
            discard(c);
            return;
        }
        if (done == 1 && c->hints) {
            c->hints -= c->hints != UINT32_MAX;
            add_hint(c);
            continue;
        }
        if (c->sinks || (done == 0 && !c->upgraded))
            return;
        ssize_t n = recv(c->fd, scrap, BLOCK, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            discard(c);
            return;
        }
        more = n > 0 && done == 1;
        if (n > 0 && certificate && !c->upgraded) {
            c->upgraded = true;
            output_add(&c->out, certificate, certificate_length, certificate_length);
        } else if (n > 0) {
            serve_bytes(c, scrap, (size_t)n);
        }
    }
}

static bool serve_tick(void)
{
    return now() < end;
}

static void serve(void)
{
    memset(cookie, 'x', 454);
    memcpy(cookie, "Set-Cookie: c=", 14);
    memcpy(cookie + 454, "\r\n", 3);
    for (int port = plan.to.first; port <= plan.to.last; port++) {
        int on = 1, fd = socket(plan.to.at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        set_port(&plan.to, port);
        if (plan.to.at.ss_family == AF_UNIX)
            unlink(((struct sockaddr_un *)&plan.to.at)->sun_path);
        if (fd < 0 || bind(fd, (struct sockaddr *)&plan.to.at, plan.to.length) < 0 || listen(fd, 4096) < 0)
            die("listen");
        if (plan.to.at.ss_family == AF_UNIX)
            chmod(((struct sockaddr_un *)&plan.to.at)->sun_path, 0777);
        adopt(fd)->listens = true;
    }
    loop(serve_ready, serve_tick);
}

/* ---- watch ---- */

enum { HEALTH, GOOD, KINDS, MOST_PROBES = 2 * MOST_SECONDS * 1000 / PROBE };

static const char *probed[KINDS] = {"/health", NULL};
static const char *cgroup;

static struct {
    long asked, answered, failed, status[600];
    int64_t took[MOST_PROBES];
} probes[KINDS];

static const char *const counters[] = {"sock", "kernel", "anon", "file"};
static long long highest_current, highest[4];

static long long number_in(const char *text, const char *name)
{
    size_t n = strlen(name);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, n) == 0 && line[n] == ' ')
            return atoll(line + n);
    }
    return 0;
}

static void sample(void)
{
    char path[512], text[8192];
    static int turn;
    const char *files[] = {"memory.current", "memory.stat"};
    for (int i = 0; i < (turn % 5 ? 1 : 2); i++) { /* reading memory.stat is slow: only every fifth time */
        snprintf(path, sizeof path, "%s/%s", cgroup, files[i]);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        text[n > 0 ? n : 0] = 0;
        if (i == 0 && atoll(text) > highest_current)
            highest_current = atoll(text);
        for (int k = 0; i == 1 && k < 4; k++) {
            long long value = number_in(text, counters[k]);
            highest[k] = value > highest[k] ? value : highest[k];
        }
    }
    turn++;
}

static void probe_done(struct connection *c, int status)
{
    if (status)
        probes[c->kind].status[status]++;
    else
        probes[c->kind].failed++;
    if (probes[c->kind].answered < MOST_PROBES)
        probes[c->kind].took[probes[c->kind].answered++] = now() - c->since;
    seen.open--;
    if (c->fd < 0)
        free(c);
    else
        discard(c);
}

static void watch_ready(struct connection *c, uint32_t events)
{
    if (output_send(&c->out, c->fd, UINT64_MAX) < 0) {
        probe_done(c, 0);
        return;
    }
    if (!(events & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP)))
        return;
    char line[LINE] = "";
    ssize_t n = recv(c->fd, line, sizeof line - 1, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return;
    int status = n >= 12 ? atoi(line + 9) : 0;
    probe_done(c, status >= 100 && status < 600 ? status : 0);
}

static void probe(int kind)
{
    static char text[KINDS][LINE];
    snprintf(text[kind], LINE, "GET %s HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n", probed[kind]);
    probes[kind].asked++;
    seen.open++;
    int fd = reach(&plan.to, NULL, 0);
    struct connection *c = fd < 0 ? calloc(1, sizeof *c) : adopt(fd);
    if (!c)
        die("calloc");
    c->fd = fd;
    c->kind = kind;
    c->since = now();
    output_text(&c->out, text[kind]);
    if (fd < 0)
        probe_done(c, 0); /* the backlog of a unix socket is full, or nothing listens */
}

static bool watch_tick(void)
{
    static int64_t next, turn;
    if (cgroup)
        sample();
    if (now() < end && now() >= next) {
        next = (next ? next : now()) + PROBE;
        for (int kind = 0; kind < KINDS; kind++)
            if (probed[kind])
                probe(kind);
    }
    bool look = turn++ % 10 == 0;
    for (int fd = 0; look && fd < DESCRIPTORS; fd++)
        if (table[fd] && now() - table[fd]->since > PATIENCE)
            probe_done(table[fd], 0);
    return now() < end || seen.open > 0;
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void watch(void)
{
    loop(watch_ready, watch_tick);
    printf("{");
    for (int kind = 0; kind < KINDS && probed[kind]; kind++) {
        long n = probes[kind].answered;
        qsort(probes[kind].took, (size_t)n, sizeof(int64_t), by_size);
        printf("\"%s\": {\"asked\": %ld, \"failed\": %ld, \"median\": %.3f, \"worst\": %.3f, \"answers\": {", kind ? "good" : "health",
               probes[kind].asked, probes[kind].failed, n ? (double)probes[kind].took[n / 2] / 1000 : 0, n ? (double)probes[kind].took[n - 1] / 1000 : 0);
        const char *comma = "";
        for (int i = 100; i < 600; i++)
            if (probes[kind].status[i]) {
                printf("%s\"%d\": %ld", comma, i, probes[kind].status[i]);
                comma = ", ";
            }
        printf("}}, ");
    }
    printf("\"peak\": {\"current\": %lld", highest_current);
    for (int k = 0; k < 4; k++)
        printf(", \"%s\": %lld", counters[k], highest[k]);
    printf("}}\n");
}

/* ---- the command line ---- */

static int usage(void)
{
    fprintf(stderr, "flood attack|serve|watch ADDRESS [OPTION...]; see the head of flood.c\n");
    return 2;
}

static void take_option(char option, const char *value)
{
    uint64_t number = value ? strtoull(value, NULL, 10) : 0;
    long count = (long)number;
    switch (option) {
    case 's': end = start + (count < MOST_SECONDS ? count : MOST_SECONDS) * 1000; break;
    case 'c': plan.clients = count < MOST_CLIENTS ? count : MOST_CLIENTS; break;
    case 't': plan.total = count, plan.has_total = true; break;
    case 'r': plan.rate = count; break;
    case 'b': plan.rcvbuf = count; break;
    case 'f': plan.from = value; break;
    case 'y': plan.stay = count; break;
    case 'm': plan.mute = true; break;
    case 'p': plan.path = value; break;
    case 'P': plan.path_bytes = count; break;
    case 'H': plan.host_bytes = count; break;
    case 'n': plan.paths = count < 1 ? 1 : count < MOST_PATHS ? count : MOST_PATHS; break;
    case 'x': plan.close = true; break;
    case 'u': plan.upgrade = true; break;
    case 'F': plan.fields = true; break;
    case 'w': plan.frames = true; break;
    case 'B': plan.body = number; break;
    case 'a': plan.pace = number; break;
    case 'S': plan.send.bytes = contents(value, &plan.send.length); break;
    case 'Q': plan.repeat.bytes = contents(value, &plan.repeat.length); break;
    case 'E': plan.finish = true; break;
    case 'A': plan.again = true; break;
    case 'R': plan.read = number; break;
    case 'T': plan.take = number; break;
    case 'L': plan.leave = value; break;
    case 'C': write_certificate(number); break;
    case 'G': probed[GOOD] = value; break;
    case 'D': cgroup = value; break;
    default: exit(usage());
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"seconds", 1, 0, 's'}, {"clients", 1, 0, 'c'}, {"total", 1, 0, 't'}, {"rate", 1, 0, 'r'}, {"rcvbuf", 1, 0, 'b'},
        {"from", 1, 0, 'f'}, {"stay", 1, 0, 'y'}, {"mute", 0, 0, 'm'}, {"path", 1, 0, 'p'}, {"path-bytes", 1, 0, 'P'},
        {"host-bytes", 1, 0, 'H'}, {"paths", 1, 0, 'n'}, {"close", 0, 0, 'x'}, {"upgrade", 0, 0, 'u'}, {"fields", 0, 0, 'F'}, {"frames", 0, 0, 'w'},
        {"body", 1, 0, 'B'}, {"pace", 1, 0, 'a'}, {"send", 1, 0, 'S'}, {"repeat", 1, 0, 'Q'}, {"again", 0, 0, 'A'}, {"finish", 0, 0, 'E'}, {"read", 1, 0, 'R'}, {"take", 1, 0, 'T'},
        {"leave", 1, 0, 'L'}, {"tls", 1, 0, 'C'}, {"good", 1, 0, 'G'}, {"cgroup", 1, 0, 'D'}, {0, 0, 0, 0},
    };
    if (argc < 3)
        return usage();
    start = now();
    end = start + 10000;
    for (int option; (option = getopt_long(argc - 2, argv + 2, "", options, NULL)) != -1;)
        take_option((char)option, optarg);
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    signal(SIGPIPE, SIG_IGN);
    memset(block, 'x', BLOCK);
    poller = epoll_create1(EPOLL_CLOEXEC);
    plan.to = address_of(argv[2]);
    if (strcmp(argv[1], "serve") == 0) {
        serve();
        return 0;
    }
    set_port(&plan.to, plan.to.first);
    if (strcmp(argv[1], "attack") == 0)
        attack();
    else if (strcmp(argv[1], "watch") == 0)
        watch();
    else
        return usage();
    return 0;
}
