/* The load of the gateway benchmark: N callers, each with a connection of its own and one call at a time, over and over.
 *
 *     load --to 127.0.0.1:PORT --path /v1/messages --body FILE [--headers FILE] [--callers N] [--warm S]
 *          [--seconds S | --calls N] [--least N] [--stream] [--tokens N] [--hold]
 *
 * One thread, epoll, keep-alive HTTP/1.1. The body is FILE with each @@@NONCE@@@@@@@@ (16 bytes) replaced by another number in
 * every call, so that no two calls are alike. A call is good when its status is 200 and its body has the end that its kind of
 * answer must have; a stream is also counted for its tokens (words that begin with "zap") while warming up, and one with fewer
 * than --tokens is an error. Writes "measuring" to standard output when the warm-up is over and one JSON object at the end;
 * then it waits a moment for the answers still under way, so that the server is left with nothing to clean up. With --least it
 * goes on, up to PATIENCE times as long, until so many calls were good. Times are microseconds from the first byte sent.
 *
 * --hold opens N streams that nobody ends (the upstream must be told to hold them), writes the JSON object when all have given
 * their first token, and keeps them until its standard input ends.
 *
 * It drives servers of this machine for a bounded time; it knows no TLS, no HTTP/2, no redirects.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONCE = 16, NONCES = 8, HEAD_LIMIT = 16384, INTAKE = 1 << 18, EVENTS = 512, TAIL = 64, SHOWN = 300, OPENING = 32 };
static const char PLACE[] = "@@@NONCE@@@@@@@@";

enum state { CLOSED, IDLE, CONNECTING, SENDING, HEAD, FIXED, SIZE, CHUNK, CHUNK_END, TRAILER, UNTIL_CLOSE, HELD };

struct caller {
    int fd, status;
    enum state state;
    bool writes, used, last; /* used: has carried a call before; last: the server closes after this answer */
    char nonce[NONCE], head[HEAD_LIMIT + 1], line[64], tail[TAIL], start[SHOWN];
    size_t sent, head_size, left, line_size, tail_size, start_size, body_size;
    unsigned matched;
    long tokens;
    long long began, first, token;
};

struct series {
    float *data;
    size_t size, room;
};

static struct {
    const char *host, *path, *headers, *body;
    int port;
    long callers, calls, least, tokens;
    double warm_s, seconds;
    bool stream, hold;
} asked = {.host = "127.0.0.1", .path = "/", .callers = 1, .warm_s = 0.5, .seconds = 2, .tokens = 0};

static struct iovec parts[2 * NONCES + 2];
static bool part_is_nonce[2 * NONCES + 2];
static int part_count;
static size_t request_size;

static struct caller *callers;
static int poller;
static char intake[INTAKE];
static struct sockaddr_in address;
static struct series whole, first, token;
static long statuses[1000], cut, refused, torn, short_streams, reconnects, stale, good, tokens_good;
static long least_tokens = -1;
static unsigned long long bytes_in, serial;
static char example[SHOWN + 1];
static bool measuring, over;
static long long measured_from, last_progress;
static long opened, next_open;

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static void *need(void *memory) {
    if (!memory) fail("out of memory");
    return memory;
}

static void note(struct series *series, long long ns) {
    if (series->size == series->room) {
        series->room = series->room ? series->room * 2 : 1 << 16;
        series->data = need(realloc(series->data, series->room * sizeof *series->data));
    }
    series->data[series->size++] = (float)ns / 1000;
}

/* ------------------------------------------------------------------------------------------------------------- request */

static char *slurp(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("%s: %s", path, strerror(errno));
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *data = need(malloc(*size + 1));
    if (fread(data, 1, *size, file) != *size) fail("%s cannot be read", path);
    data[*size] = 0;
    fclose(file);
    return data;
}

static void part(char *data, size_t size, bool nonce) {
    if (part_count == 2 * NONCES + 2) fail("more than %d nonces in the body", NONCES);
    part_is_nonce[part_count] = nonce;
    parts[part_count++] = (struct iovec){.iov_base = data, .iov_len = size};
    request_size += size;
}

/* The request is the same memory for all callers; only the nonces are their own. */
static void prepare(void) {
    size_t body_size = 0, extra_size = 0;
    char *body = asked.body ? slurp(asked.body, &body_size) : "";
    char *extra = asked.headers ? slurp(asked.headers, &extra_size) : "";
    char *head = need(malloc(extra_size * 2 + 1024));
    const char *method = body_size ? "POST" : "GET";
    int size = sprintf(head, "%s %s HTTP/1.1\r\nhost: %s:%d\r\n", method, asked.path, asked.host, asked.port);
    if (body_size) size += sprintf(head + size, "content-type: application/json\r\ncontent-length: %zu\r\n", body_size);
    for (char *rest = extra_size ? extra : NULL, *line; rest && (line = strsep(&rest, "\r\n"));)
        if (*line) size += sprintf(head + size, "%s\r\n", line);
    size += sprintf(head + size, "\r\n");
    part(head, (size_t)size, false);
    for (char *at = body, *end = body + body_size; at < end;) {
        char *place = memmem(at, (size_t)(end - at), PLACE, NONCE);
        if (!place) place = end;
        if (place > at) part(at, (size_t)(place - at), false);
        if (place < end) part(place, NONCE, true);
        at = place + (place < end ? NONCE : 0);
    }
}

static void watch(struct caller *caller, bool write) {
    if (caller->writes == write) return;
    caller->writes = write;
    struct epoll_event event = {.events = EPOLLIN | (write ? EPOLLOUT : 0), .data.ptr = caller};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, caller->fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

static void drop(struct caller *caller) {
    if (caller->fd >= 0) close(caller->fd);
    caller->fd = -1;
    caller->state = CLOSED;
}

static void dial(struct caller *caller) {
    int one = 1;
    caller->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (caller->fd < 0) fail("socket: %s", strerror(errno));
    setsockopt(caller->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    caller->state = CONNECTING;
    caller->used = caller->last = false;
    caller->writes = true;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = caller};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, caller->fd, &event)) fail("epoll_ctl: %s", strerror(errno));
    if (connect(caller->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        refused++;
        drop(caller);
    }
}

/* Sends what is left of the request. False: the connection is broken. */
static bool push(struct caller *caller) {
    while (caller->sent < request_size) {
        struct iovec now[2 * NONCES + 2];
        int count = 0;
        size_t skip = caller->sent;
        for (int i = 0; i < part_count; i++) {
            if (skip >= parts[i].iov_len) {
                skip -= parts[i].iov_len;
                continue;
            }
            char *data = part_is_nonce[i] ? caller->nonce : parts[i].iov_base;
            now[count++] = (struct iovec){.iov_base = data + skip, .iov_len = parts[i].iov_len - skip};
            skip = 0;
        }
        struct msghdr message = {.msg_iov = now, .msg_iovlen = (size_t)count};
        ssize_t size = sendmsg(caller->fd, &message, MSG_NOSIGNAL);
        if (size < 0 && errno == EAGAIN) {
            watch(caller, true);
            return true;
        }
        if (size < 0) return false;
        caller->sent += (size_t)size;
    }
    caller->state = HEAD;
    watch(caller, false);
    return true;
}

static bool call(struct caller *caller) {
    static const char digits[] = "0123456789abcdef";
    unsigned long long mixed = ++serial * 0x9E3779B97F4A7C15ULL;
    for (int i = 0; i < NONCE; i++, mixed = mixed >> 4 | mixed << 60) caller->nonce[i] = digits[mixed & 15];
    caller->sent = caller->head_size = caller->line_size = caller->tail_size = caller->start_size = caller->body_size = 0;
    caller->matched = 0;
    caller->tokens = 0;
    caller->first = caller->token = 0;
    caller->state = SENDING;
    caller->began = now_ns();
    return push(caller);
}

/* -------------------------------------------------------------------------------------------------------------- answer */

/* Tokens are counted in full only while warming up; afterwards the first is enough, and the end of the body is looked at. */
static void look_for_tokens(struct caller *caller, const char *data, size_t size) {
    static const char word[] = "zap";
    for (size_t i = 0; i < size; i++) {
        if (!caller->matched) {
            const char *next = memchr(data + i, word[0], size - i);
            if (!next) return;
            i = (size_t)(next - data);
        }
        if (data[i] == word[caller->matched]) {
            if (++caller->matched < 3) continue;
            caller->matched = 0;
            caller->tokens++;
            if (!caller->token) caller->token = now_ns();
            if (measuring) return;
        } else {
            caller->matched = data[i] == word[0];
        }
    }
}

static void body(struct caller *caller, const char *data, size_t size) {
    if (!caller->first) caller->first = now_ns();
    caller->body_size += size;
    if (asked.stream && (!measuring || !caller->token)) look_for_tokens(caller, data, size);
    if (caller->start_size < SHOWN && caller->status != 200) {
        size_t room = SHOWN - caller->start_size, some = size < room ? size : room;
        memcpy(caller->start + caller->start_size, data, some);
        caller->start_size += some;
    }
    if (size >= TAIL) {
        memcpy(caller->tail, data + size - TAIL, TAIL);
        caller->tail_size = TAIL;
        return;
    }
    size_t old = caller->tail_size + size > TAIL ? TAIL - size : caller->tail_size;
    memmove(caller->tail, caller->tail + caller->tail_size - old, old);
    memcpy(caller->tail + old, data, size);
    caller->tail_size = old + size;
}

static bool has_its_end(const struct caller *caller) {
    size_t size = caller->tail_size;
    if (asked.stream) return memmem(caller->tail, size, "[DONE]", 6) || memmem(caller->tail, size, "message_stop", 12);
    while (size && (caller->tail[size - 1] == '\n' || caller->tail[size - 1] == '\r')) size--;
    return size && caller->tail[size - 1] == '}';
}

static void finish(struct caller *caller) {
    long long now = now_ns();
    last_progress = now;
    bool whole_measured = measuring && caller->began >= measured_from;
    bytes_in += measuring ? caller->body_size : 0;
    if (caller->status != 200) {
        statuses[caller->status]++;
        memcpy(example, caller->start, caller->start_size);
    } else if (!has_its_end(caller)) {
        torn++;
    } else if (asked.stream && !measuring && caller->tokens < asked.tokens) {
        short_streams++;
    } else if (measuring) {
        good++;
        tokens_good += asked.tokens;
    }
    bool counted = asked.stream && !measuring && caller->status == 200;
    if (counted && (least_tokens < 0 || caller->tokens < least_tokens)) least_tokens = caller->tokens;
    if (caller->status == 200 && whole_measured) {
        note(&whole, now - caller->began);
        note(&first, caller->first - caller->began);
        if (caller->token) note(&token, caller->token - caller->began);
    }
    if (asked.calls && good >= asked.calls) over = true; /* exactly so many */
    caller->used = true;
    caller->state = IDLE;
    if (over) return;
    if (caller->last) {
        reconnects++;
        drop(caller);
        dial(caller);
    } else if (!call(caller)) {
        cut++;
        drop(caller);
        dial(caller);
    }
}

static const char *header(const char *head, const char *name) {
    size_t size = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, size) && line[2 + size] == ':') {
            const char *value = line + 3 + size;
            while (*value == ' ') value++;
            return value;
        }
    return NULL;
}

static bool read_head(struct caller *caller) {
    if (sscanf(caller->head, "HTTP/1.%*d %d", &caller->status) != 1) return false;
    if (caller->status < 100 || caller->status > 999) return false;
    const char *length = header(caller->head, "content-length"), *coding = header(caller->head, "transfer-encoding");
    const char *connection = header(caller->head, "connection");
    if (caller->status == 100) {
        caller->head_size = 0;
        return true;
    }
    caller->last = connection && !strncasecmp(connection, "close", 5);
    caller->left = length ? strtoull(length, NULL, 10) : 0;
    caller->state = coding && strcasestr(coding, "chunked") ? SIZE : length ? FIXED : UNTIL_CLOSE;
    return true;
}

static ssize_t take_head(struct caller *caller, const char *data, size_t size) {
    size_t room = HEAD_LIMIT - caller->head_size, some = size < room ? size : room;
    size_t from = caller->head_size > 3 ? caller->head_size - 3 : 0;
    memcpy(caller->head + caller->head_size, data, some);
    caller->head[caller->head_size + some] = 0;
    char *end = memmem(caller->head + from, caller->head_size + some - from, "\r\n\r\n", 4);
    if (!end) {
        caller->head_size += some;
        return caller->head_size == HEAD_LIMIT ? -1 : (ssize_t)some;
    }
    size_t used = (size_t)(end + 4 - caller->head) - caller->head_size;
    end[2] = 0;
    return read_head(caller) ? (ssize_t)used : -1;
}

static bool take_line(struct caller *caller, const char **data, size_t *size) {
    while (*size) {
        char one = *(*data)++;
        --*size;
        if (one == '\n') {
            caller->line[caller->line_size] = 0;
            return true;
        }
        if (one != '\r' && caller->line_size < sizeof caller->line - 1) caller->line[caller->line_size++] = one;
    }
    return false;
}

static void hold_when_told(struct caller *caller) {
    if (!asked.hold || caller->state == HELD || !caller->token) return;
    caller->state = HELD;
    note(&token, caller->token - caller->began);
    opened++;
    last_progress = now_ns();
}

/* False: what came is no answer to the call. */
static bool take(struct caller *caller, const char *data, size_t size) {
    while (size || (caller->state == FIXED && !caller->left)) {
        if (caller->state == HEAD) {
            ssize_t used = take_head(caller, data, size);
            if (used < 0) return false;
            data += used;
            size -= (size_t)used;
        } else if (caller->state == FIXED || caller->state == CHUNK || caller->state == UNTIL_CLOSE) {
            size_t some = caller->state != UNTIL_CLOSE && caller->left < size ? caller->left : size;
            if (some) body(caller, data, some);
            data += some;
            size -= some;
            if (caller->state == UNTIL_CLOSE) continue;
            caller->left -= some;
            if (caller->left) break;
            if (caller->state == CHUNK) {
                caller->state = CHUNK_END;
                continue;
            }
            if (size) return false;
            finish(caller);
            return true;
        } else if (caller->state == SIZE || caller->state == CHUNK_END || caller->state == TRAILER) {
            if (!take_line(caller, &data, &size)) break;
            size_t line_size = caller->line_size;
            caller->line_size = 0;
            if (caller->state == CHUNK_END)
                caller->state = SIZE;
            else if (caller->state == SIZE) {
                caller->left = strtoull(caller->line, NULL, 16);
                caller->state = caller->left ? CHUNK : TRAILER;
            } else if (!line_size) {
                if (size) return false;
                finish(caller);
                return true;
            }
        } else if (caller->state == HELD) {
            return true;
        } else {
            return false; /* an answer before the question was sent whole */
        }
    }
    hold_when_told(caller);
    return true;
}

static void closed(struct caller *caller) {
    if (caller->state == UNTIL_CLOSE) {
        caller->last = true;
        finish(caller);
        return;
    }
    if (caller->state == HELD)
        opened--;
    if (caller->state == HEAD && !caller->head_size && caller->used)
        stale++; /* a kept connection that the server let go: not the call's fault, but not free either */
    else
        cut++;
    bool again = caller->state != HELD && !over;
    drop(caller);
    if (again) dial(caller);
}

static void readable(struct caller *caller) {
    for (;;) {
        ssize_t size = recv(caller->fd, intake, sizeof intake, 0);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (size <= 0) {
            closed(caller);
            return;
        }
        int fd = caller->fd;
        if (caller->state == SENDING && caller->sent) caller->state = HEAD; /* an early answer, as an error may be */
        if (!take(caller, intake, (size_t)size)) {
            torn++;
            drop(caller);
            dial(caller);
            return;
        }
        if (caller->fd != fd || size < INTAKE / 2) return;
    }
}

static void writable(struct caller *caller) {
    if (caller->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(caller->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            refused++;
            drop(caller);
            return;
        }
        if (!over && !call(caller)) closed(caller);
    } else if (caller->state == SENDING && !push(caller)) {
        closed(caller);
    }
}

/* -------------------------------------------------------------------------------------------------------------- report */

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void tell(const char *name, struct series *series) {
    printf(",\"%s\":", name);
    if (!series->size) {
        printf("null");
        return;
    }
    qsort(series->data, series->size, sizeof *series->data, compare);
    static const struct { const char *name; double share; } cuts[] = {{"p50", .5}, {"p90", .9}, {"p99", .99}, {"max", 1}};
    for (size_t i = 0; i < 4; i++) {
        size_t at = (size_t)(cuts[i].share * (double)series->size);
        if (at >= series->size) at = series->size - 1;
        printf("%c\"%s\":%.1f", i ? ',' : '{', cuts[i].name, series->data[at]);
    }
    printf("}");
}

static void report(void) {
    double seconds = (double)(now_ns() - measured_from) / 1e9;
    long wrong = cut + refused + torn + short_streams;
    for (int i = 0; i < 1000; i++) wrong += statuses[i];
    printf("{\"calls\":%ld,\"seconds\":%.3f,\"calls_per_s\":%.1f,\"chunks_per_s\":%.1f,", good, seconds, (double)good / seconds,
           (double)tokens_good / seconds);
    printf("\"body_bytes\":%llu,\"errors\":%ld,\"wrong\":{", bytes_in, wrong);
    const char *comma = "";
    for (int i = 0; i < 1000; i++)
        if (statuses[i]) {
            printf("%s\"%d\":%ld", comma, i, statuses[i]);
            comma = ",";
        }
    const struct { const char *name; long count; } others[] = {
        {"cut", cut}, {"refused", refused}, {"torn", torn}, {"short", short_streams}};
    for (size_t i = 0; i < 4; i++)
        if (others[i].count) {
            printf("%s\"%s\":%ld", comma, others[i].name, others[i].count);
            comma = ",";
        }
    printf("},\"reconnects\":%ld,\"stale\":%ld,\"open\":%ld,\"least_tokens\":%ld,", reconnects, stale, opened, least_tokens);
    printf("\"example\":\"");
    for (const char *at = example; *at; at++) {
        if (*at == '"' || *at == '\\') putchar('\\');
        putchar((unsigned char)*at < 32 ? ' ' : *at);
    }
    printf("\"");
    tell("latency_us", &whole);
    tell("first_us", &first);
    tell("token_us", &token);
    printf("}\n");
    fflush(stdout);
}

/* Clears what the warm-up noted, but not its errors. */
static void begin_measuring(long long now) {
    measuring = true;
    measured_from = now;
    printf("measuring\n");
    fflush(stdout);
}

static void turn(int patience_ms) {
    struct epoll_event events[EVENTS];
    int found = epoll_wait(poller, events, EVENTS, patience_ms);
    for (int i = 0; i < found; i++) {
        struct caller *caller = events[i].data.ptr;
        if (!caller) {
            if (read(STDIN_FILENO, intake, sizeof intake) <= 0) exit(0);
            continue;
        }
        if (caller->fd >= 0 && events[i].events & EPOLLOUT) writable(caller);
        if (caller->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(caller);
    }
}

enum { STALL_S = 20, DRAIN_S = 3, PATIENCE = 8 };

static bool enough(long long now) {
    double seconds = (double)(now - measured_from) / 1e9;
    if (asked.calls) return good >= asked.calls;
    return seconds >= asked.seconds && (good >= asked.least || seconds >= asked.seconds * PATIENCE);
}

static void drain(void) {
    long long until = now_ns() + DRAIN_S * 1000000000LL;
    over = true;
    for (bool busy = true; busy && now_ns() < until;) {
        busy = false;
        for (long i = 0; i < asked.callers; i++) busy = busy || callers[i].state > CONNECTING;
        if (busy) turn(20);
    }
}

static void loop(void) {
    for (long i = 0; i < asked.callers; i++) dial(&callers[i]);
    long long warm_until = now_ns() + (long long)(asked.warm_s * 1e9), now;
    last_progress = now_ns();
    while (!over) {
        turn(50);
        for (long i = 0; refused && i < asked.callers; i++)
            if (callers[i].state == CLOSED) dial(&callers[i]);
        now = now_ns();
        if (!measuring && now >= warm_until) begin_measuring(now);
        if (measuring && enough(now)) break;
        if (now - last_progress > STALL_S * 1000000000LL) {
            fprintf(stderr, "load: no call has ended for %d s\n", STALL_S);
            break;
        }
        if (refused > 10 * asked.callers) fail("%s:%d does not take connections", asked.host, asked.port);
    }
    report();
    drain();
}

/* At most OPENING at a time, so that it is the open streams that are measured and not their opening. */
static void hold(void) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event) && errno != EPERM) fail("epoll_ctl: %s", strerror(errno));
    last_progress = measured_from = now_ns();
    while (opened < asked.callers && now_ns() - last_progress < STALL_S * 1000000000LL) {
        if (cut + refused + torn > asked.callers) break;
        while (next_open < asked.callers && next_open - opened < OPENING) dial(&callers[next_open++]);
        turn(50);
    }
    report();
    for (;;) turn(-1);
}

static void read_options(int count, char **words) {
    static const struct option known[] = {
        {"to", 1, 0, 't'},      {"path", 1, 0, 'p'},  {"headers", 1, 0, 'h'}, {"body", 1, 0, 'b'},
        {"callers", 1, 0, 'n'}, {"warm", 1, 0, 'w'},  {"seconds", 1, 0, 's'}, {"calls", 1, 0, 'c'},
        {"least", 1, 0, 'l'},   {"stream", 0, 0, 'S'}, {"tokens", 1, 0, 'k'}, {"hold", 0, 0, 'H'},
        {0, 0, 0, 0}};
    for (int option; (option = getopt_long(count, words, "", known, NULL)) != -1;) switch (option) {
        case 't': {
            char *colon = strrchr(optarg, ':');
            if (!colon) fail("--to wants HOST:PORT");
            *colon = 0;
            asked.host = optarg;
            asked.port = (int)strtol(colon + 1, NULL, 10);
            break;
        }
        case 'p': asked.path = optarg; break;
        case 'h': asked.headers = optarg; break;
        case 'b': asked.body = optarg; break;
        case 'n': asked.callers = strtol(optarg, NULL, 10); break;
        case 'w': asked.warm_s = strtod(optarg, NULL); break;
        case 's': asked.seconds = strtod(optarg, NULL); break;
        case 'c': asked.calls = strtol(optarg, NULL, 10); break;
        case 'l': asked.least = strtol(optarg, NULL, 10); break;
        case 'S': asked.stream = true; break;
        case 'k': asked.tokens = strtol(optarg, NULL, 10); break;
        case 'H': asked.hold = asked.stream = true; break;
        default: exit(2);
        }
    if (asked.callers < 1) fail("--callers wants at least one");
}

int main(int count, char **words) {
    read_options(count, words);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)asked.port)};
    if (inet_pton(AF_INET, asked.host, &address.sin_addr) != 1 || ntohl(address.sin_addr.s_addr) >> 24 != 127)
        fail("%s is no loopback address", asked.host);
    prepare();
    callers = need(calloc((size_t)asked.callers, sizeof *callers));
    for (long i = 0; i < asked.callers; i++) callers[i].fd = -1;
    poller = epoll_create1(EPOLL_CLOEXEC);
    serial = (unsigned long long)now_ns();
    if (asked.hold)
        hold();
    else
        loop();
    return 0;
}
