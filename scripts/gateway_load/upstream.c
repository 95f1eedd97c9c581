/* The upstream of the gateway benchmark: a model provider that answers at once, always the same, and is never the bottleneck.
 *
 * One thread, epoll, keep-alive HTTP/1.1 on 127.0.0.1. POST to a path that ends in /messages is answered in Anthropic's
 * protocol, one that ends in /completions in OpenAI's; "stream":true in the body asks for server-sent events, each event in a
 * chunk of its own. GET /health, /v1/models and /stats (what it has served so far).
 *
 * The caller says what it wants inside its prompt, because that passes through every gateway:
 *     [[chunks=50 burst=0 delay_us=0 hold=0 bytes=1024 status=200 stream=0]]
 * chunks: tokens of a stream; burst: events given to one write (0: all); delay_us: pause between bursts; hold: stop after the
 * first token until the caller hangs up; bytes: size of a plain answer; status: another than 200 is an error; stream: as if the
 * body said so (a gateway that writes the body anew may put "stream" where it is not looked for). The options of the command
 * line are the defaults. Only the first and last 2 KB of a body are looked at; the rest is counted and dropped.
 *
 * It ends when its standard input does, so that it never outlives who started it. It is no model of a real provider: no TLS,
 * no HTTP/2, no limits, and a caller that sends its next request before the answer has ended is cut off.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WINDOW = 2048, HEAD_LIMIT = 16384, INTAKE = 1 << 18, EVENTS = 512, KEPT = 64 };

struct order {
    long chunks, burst, delay_us, hold, bytes, status, stream;
};

/* A whole answer in one piece of memory; ends[i] is where its i-th piece that may be sent alone ends. */
struct answer {
    bool anthropic, stream;
    long chunks, bytes, status;
    char *data;
    size_t size, *ends;
    size_t pieces, first_token; /* first_token: pieces up to and with the first token */
};

enum state { IN_HEAD, IN_BODY, IN_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER, ANSWERING };

struct conn {
    int fd;
    enum state state;
    bool anthropic, post, last_request, wants_write, waits;
    size_t head_size, left, line_size, first_size, last_size;
    char head[HEAD_LIMIT + 1], line[64], first[WINDOW], last[WINDOW], path[256];
    const struct answer *answer;
    struct answer own; /* for the answers that are not kept */
    struct order order;
    size_t sent, piece;
    long long due_us;
    struct conn *before, *after;
};

static struct order defaults = {.chunks = 50, .burst = 0, .delay_us = 0, .hold = 0, .bytes = 1024, .status = 200};
static struct answer kept[KEPT];
static size_t kept_count;
static int poller;
static char intake[INTAKE];
static struct conn *waiting_first, *waiting_last;
static struct {
    unsigned long long plain, streams, errors, body_bytes, connections, open;
} served;

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void fail(const char *what) {
    fprintf(stderr, "upstream: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void *need(void *memory) {
    if (!memory) fail("memory");
    return memory;
}

/* ------------------------------------------------------------------------------------------------------------- answers */

struct text {
    char *data;
    size_t size, room;
};

static void add(struct text *text, const char *data, size_t size) {
    if (text->size + size > text->room) {
        text->room = (text->size + size) * 2;
        text->data = need(realloc(text->data, text->room));
    }
    memcpy(text->data + text->size, data, size);
    text->size += size;
}

__attribute__((format(printf, 2, 3))) static void say(struct text *text, const char *format, ...) {
    char line[4096];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    add(text, line, (size_t)size);
}

static void end_piece(struct answer *answer, const struct text *text) {
    answer->ends = need(realloc(answer->ends, (answer->pieces + 1) * sizeof *answer->ends));
    answer->ends[answer->pieces++] = text->size;
}

static void frame(struct answer *answer, struct text *text, struct text *event) {
    say(text, "%zx\r\n", event->size);
    add(text, event->data, event->size);
    add(text, "\r\n", 2);
    event->size = 0;
    end_piece(answer, text);
}

static const char *OPENAI_CHUNK =
    "data: {\"id\":\"chatcmpl-bench0001\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\","
    "\"system_fingerprint\":\"fp_bench\",\"choices\":";

static void openai_stream(struct answer *answer, struct text *text) {
    struct text event = {0};
    say(&event, "%s[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n", OPENAI_CHUNK);
    frame(answer, text, &event);
    for (long i = 0; i < answer->chunks; i++) {
        say(&event, "%s[{\"index\":0,\"delta\":{\"content\":\"zap%ld \"},\"finish_reason\":null}]}\n\n", OPENAI_CHUNK, i);
        frame(answer, text, &event);
        if (i == 0) answer->first_token = answer->pieces;
    }
    say(&event, "%s[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n", OPENAI_CHUNK);
    frame(answer, text, &event);
    say(&event, "%s[],\"usage\":{\"prompt_tokens\":512,\"completion_tokens\":%ld,\"total_tokens\":%ld,"
        "\"prompt_tokens_details\":{\"cached_tokens\":256}}}\n\n", OPENAI_CHUNK, answer->chunks, answer->chunks + 512);
    frame(answer, text, &event);
    say(&event, "data: [DONE]\n\n");
    frame(answer, text, &event);
    free(event.data);
}

static void anthropic_stream(struct answer *answer, struct text *text) {
    struct text event = {0};
    say(&event, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_bench0001\",\"type\":\"message\","
        "\"role\":\"assistant\",\"model\":\"bench\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":"
        "{\"input_tokens\":256,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":256,\"output_tokens\":1}}}\n\n");
    frame(answer, text, &event);
    say(&event, "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,"
        "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n");
    frame(answer, text, &event);
    say(&event, "event: ping\ndata: {\"type\": \"ping\"}\n\n");
    frame(answer, text, &event);
    for (long i = 0; i < answer->chunks; i++) {
        say(&event, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,"
            "\"delta\":{\"type\":\"text_delta\",\"text\":\"zap%ld \"}}\n\n", i);
        frame(answer, text, &event);
        if (i == 0) answer->first_token = answer->pieces;
    }
    say(&event, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n");
    frame(answer, text, &event);
    say(&event, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\","
        "\"stop_sequence\":null},\"usage\":{\"output_tokens\":%ld}}\n\n", answer->chunks);
    frame(answer, text, &event);
    say(&event, "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
    frame(answer, text, &event);
    free(event.data);
}

static void plain_body(const struct answer *answer, struct text *body) {
    if (answer->status != 200) {
        say(body, answer->anthropic ? "{\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"as ordered: %ld\"}}"
                                    : "{\"error\":{\"message\":\"as ordered: %ld\",\"type\":\"server_error\",\"code\":null}}",
            answer->status);
        return;
    }
    say(body, answer->anthropic
            ? "{\"id\":\"msg_bench0001\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"bench\",\"content\":"
              "[{\"type\":\"text\",\"text\":\""
            : "{\"id\":\"chatcmpl-bench0001\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"bench\","
              "\"system_fingerprint\":\"fp_bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"");
    for (long i = 0; (long)body->size + 300 < answer->bytes; i++) say(body, "zap%ld ", i);
    say(body, answer->anthropic
            ? "end\"}],\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{\"input_tokens\":256,"
              "\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":256,\"output_tokens\":128,"
              "\"service_tier\":\"standard\"}}"
            : "end\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":512,"
              "\"completion_tokens\":128,\"total_tokens\":640,\"prompt_tokens_details\":{\"cached_tokens\":256}}}");
}

static void whole(struct answer *answer, long status, const struct text *body) {
    struct text text = {0};
    say(&text, "HTTP/1.1 %ld %s\r\ncontent-type: application/json\r\nrequest-id: req_bench0001\r\ncontent-length: %zu\r\n\r\n",
        status, status == 200 ? "OK" : "Refused", body->size);
    if (body->size) add(&text, body->data, body->size);
    end_piece(answer, &text);
    answer->data = text.data;
    answer->size = text.size;
    answer->first_token = answer->pieces;
}

static void build(struct answer *answer) {
    struct text text = {0};
    if (!answer->stream || answer->status != 200) {
        plain_body(answer, &text);
        whole(answer, answer->status, &text);
        free(text.data);
        return;
    }
    say(&text, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
        "request-id: req_bench0001\r\ntransfer-encoding: chunked\r\n\r\n");
    (answer->anthropic ? anthropic_stream : openai_stream)(answer, &text);
    add(&text, "0\r\n\r\n", 5);
    answer->ends[answer->pieces - 1] = text.size;
    answer->data = text.data;
    answer->size = text.size;
}

/* Each kind of answer is made once: calls cost a look-up. */
static const struct answer *find_answer(bool anthropic, bool stream, const struct order *order) {
    for (size_t i = 0; i < kept_count; i++) {
        const struct answer *one = &kept[i];
        if (one->anthropic == anthropic && one->stream == stream && one->status == order->status &&
            (stream ? one->chunks == order->chunks : one->bytes == order->bytes))
            return one;
    }
    if (kept_count == KEPT) {
        fprintf(stderr, "upstream: more than %d kinds of answers were asked for\n", KEPT);
        exit(1);
    }
    struct answer *made = &kept[kept_count++];
    *made = (struct answer){.anthropic = anthropic, .stream = stream};
    made->chunks = order->chunks;
    made->bytes = order->bytes;
    made->status = order->status;
    build(made);
    return made;
}

/* ------------------------------------------------------------------------------------------------------------- sending */

static void unqueue(struct conn *conn) {
    if (!conn->waits) return;
    *(conn->before ? &conn->before->after : &waiting_first) = conn->after;
    *(conn->after ? &conn->after->before : &waiting_last) = conn->before;
    conn->before = conn->after = NULL;
    conn->waits = false;
}

/* Delays are nearly always the same, so the place is nearly always the last. */
static void queue(struct conn *conn, long long due_us) {
    conn->due_us = due_us;
    conn->waits = true;
    conn->before = waiting_last;
    while (conn->before && conn->before->due_us > due_us) conn->before = conn->before->before;
    conn->after = conn->before ? conn->before->after : waiting_first;
    *(conn->before ? &conn->before->after : &waiting_first) = conn;
    *(conn->after ? &conn->after->before : &waiting_last) = conn;
}

static void forget_own(struct conn *conn) {
    free(conn->own.data);
    free(conn->own.ends);
    conn->own = (struct answer){0};
}

static void hang_up(struct conn *conn) {
    unqueue(conn);
    forget_own(conn);
    close(conn->fd);
    served.open--;
    free(conn);
}

static void watch(struct conn *conn, bool write) {
    if (conn->wants_write == write) return;
    conn->wants_write = write;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (write ? EPOLLOUT : 0), .data.ptr = conn};
    if (epoll_ctl(poller, EPOLL_CTL_MOD, conn->fd, &event)) fail("epoll_ctl");
}

/* Sends what is due. False: the connection is gone. */
static bool push(struct conn *conn) {
    const struct answer *answer = conn->answer;
    for (;;) {
        size_t until = answer->ends[conn->piece - 1];
        while (conn->sent < until) {
            ssize_t size = send(conn->fd, answer->data + conn->sent, until - conn->sent, MSG_NOSIGNAL);
            if (size < 0 && errno == EAGAIN) {
                watch(conn, true);
                return true;
            }
            if (size < 0) {
                hang_up(conn);
                return false;
            }
            conn->sent += (size_t)size;
        }
        if (conn->sent == answer->size) break;
        if (conn->order.hold) {
            watch(conn, false);
            return true;
        }
        conn->piece += conn->order.burst > 0 ? (size_t)conn->order.burst : answer->pieces;
        if (conn->piece > answer->pieces) conn->piece = answer->pieces;
        if (conn->order.delay_us > 0) {
            watch(conn, false);
            queue(conn, now_us() + conn->order.delay_us);
            return true;
        }
    }
    watch(conn, false);
    forget_own(conn);
    conn->state = IN_HEAD;
    conn->head_size = 0;
    if (!conn->last_request) return true;
    hang_up(conn);
    return false;
}

static void read_order(struct order *order, const char *data, size_t size) {
    const char *begin = memmem(data, size, "[[", 2);
    const char *end = begin ? memmem(begin, size - (size_t)(begin - data), "]]", 2) : NULL;
    char text[256];
    if (!end || end - begin >= (long)sizeof text) return;
    memcpy(text, begin + 2, (size_t)(end - begin - 2));
    text[end - begin - 2] = 0;
    static const char *const names[] = {"chunks", "burst", "delay_us", "hold", "bytes", "status", "stream"};
    long *const values[] = {&order->chunks, &order->burst, &order->delay_us, &order->hold,
                            &order->bytes,  &order->status, &order->stream};
    for (char *rest, *word = strtok_r(text, " ,", &rest); word; word = strtok_r(NULL, " ,", &rest)) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            if (!strcmp(word, names[i])) *values[i] = strtol(value, NULL, 10);
    }
    if (order->chunks < 1) order->chunks = 1;
}

static bool says_stream(const char *data, size_t size) {
    return memmem(data, size, "\"stream\":true", 13) || memmem(data, size, "\"stream\": true", 14);
}

static void answer_get(struct conn *conn) {
    struct text body = {0};
    long status = 200;
    if (strstr(conn->path, "/models"))
        say(&body, "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1700000000,"
                   "\"owned_by\":\"bench\"}]}");
    else if (!strcmp(conn->path, "/stats"))
        say(&body, "{\"plain\":%llu,\"streams\":%llu,\"errors\":%llu,\"body_bytes\":%llu,\"connections\":%llu,\"open\":%llu}",
            served.plain, served.streams, served.errors, served.body_bytes, served.connections, served.open);
    else if (strstr(conn->path, "health") || strstr(conn->path, "info"))
        say(&body, "{\"status\":\"ok\",\"model_path\":\"bench\",\"served_model_name\":\"bench\"}");
    else {
        status = 404;
        say(&body, "{\"error\":{\"message\":\"there is no such path\",\"type\":\"not_found_error\"}}");
    }
    whole(&conn->own, status, &body);
    free(body.data);
    conn->answer = &conn->own;
    conn->order.hold = 0;
    conn->order.burst = 0;
}

/* The request is whole. False: the connection is gone. */
static bool serve(struct conn *conn) {
    conn->state = ANSWERING;
    conn->sent = 0;
    conn->order = defaults;
    bool known = strstr(conn->path, "/messages") || strstr(conn->path, "/completions");
    if (!conn->post || !known) {
        answer_get(conn);
        conn->piece = conn->answer->pieces;
        return push(conn);
    }
    read_order(&conn->order, conn->last, conn->last_size);
    read_order(&conn->order, conn->first, conn->first_size);
    bool stream = conn->order.stream || strstr(conn->path, "stream=true") || says_stream(conn->first, conn->first_size) ||
                  says_stream(conn->last, conn->last_size);
    (conn->order.status != 200 ? &served.errors : stream ? &served.streams : &served.plain)[0]++;
    conn->answer = find_answer(conn->anthropic, stream, &conn->order);
    conn->piece = conn->answer->pieces;
    if (conn->order.hold)
        conn->piece = conn->answer->first_token;
    else if (conn->order.burst > 0 && (size_t)conn->order.burst < conn->piece)
        conn->piece = (size_t)conn->order.burst;
    return push(conn);
}

/* ----------------------------------------------------------------------------------------------------------- receiving */

static const char *header(const char *head, const char *name) {
    size_t size = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, size) && line[2 + size] == ':') {
            const char *value = line + 3 + size;
            while (*value == ' ') value++;
            return value;
        }
    return "";
}

static bool read_head(struct conn *conn) {
    char method[16], target[sizeof conn->path];
    if (sscanf(conn->head, "%15s %255s", method, target) != 2) return false;
    strcpy(conn->path, target);
    conn->post = !strcmp(method, "POST");
    conn->anthropic = strstr(target, "/messages") != NULL;
    conn->last_request = !strncasecmp(header(conn->head, "connection"), "close", 5);
    conn->first_size = conn->last_size = conn->line_size = 0;
    conn->left = strtoull(header(conn->head, "content-length"), NULL, 10);
    conn->state = IN_BODY;
    if (!strncasecmp(header(conn->head, "transfer-encoding"), "chunked", 7)) conn->state = IN_SIZE;
    if (!strncasecmp(header(conn->head, "expect"), "100-continue", 12)) {
        static const char more[] = "HTTP/1.1 100 Continue\r\n\r\n";
        if (send(conn->fd, more, sizeof more - 1, MSG_NOSIGNAL) < 0) return false;
    }
    return true;
}

static void keep(struct conn *conn, const char *data, size_t size) {
    served.body_bytes += size;
    size_t room = WINDOW - conn->first_size, part = size < room ? size : room;
    memcpy(conn->first + conn->first_size, data, part);
    conn->first_size += part;
    if (size >= WINDOW) {
        memcpy(conn->last, data + size - WINDOW, WINDOW);
        conn->last_size = WINDOW;
    } else {
        size_t old = conn->last_size + size > WINDOW ? WINDOW - size : conn->last_size;
        memmove(conn->last, conn->last + conn->last_size - old, old);
        memcpy(conn->last + old, data, size);
        conn->last_size = old + size;
    }
}

/* Collects a line of the chunked coding; true when it is whole (without its end). */
static bool take_line(struct conn *conn, const char **data, size_t *size) {
    while (*size) {
        char one = *(*data)++;
        --*size;
        if (one == '\n') {
            conn->line[conn->line_size] = 0;
            return true;
        }
        if (one != '\r' && conn->line_size < sizeof conn->line - 1) conn->line[conn->line_size++] = one;
    }
    return false;
}

/* Takes bytes of the head. Returns how many; -1: no request of ours. */
static ssize_t take_head(struct conn *conn, const char *data, size_t size) {
    size_t room = HEAD_LIMIT - conn->head_size, part = size < room ? size : room;
    size_t from = conn->head_size > 3 ? conn->head_size - 3 : 0;
    memcpy(conn->head + conn->head_size, data, part);
    conn->head[conn->head_size + part] = 0;
    char *end = memmem(conn->head + from, conn->head_size + part - from, "\r\n\r\n", 4);
    if (!end) {
        conn->head_size += part;
        return conn->head_size == HEAD_LIMIT ? -1 : (ssize_t)part;
    }
    size_t used = (size_t)(end + 4 - conn->head) - conn->head_size;
    end[2] = 0;
    return read_head(conn) ? (ssize_t)used : -1;
}

/* False: the connection is gone. */
static bool take(struct conn *conn, const char *data, size_t size) {
    for (;;) {
        if (conn->state == IN_HEAD) {
            if (!size) return true;
            ssize_t used = take_head(conn, data, size);
            if (used < 0) break;
            data += used;
            size -= (size_t)used;
        } else if (conn->state == IN_BODY || conn->state == IN_CHUNK) {
            size_t part = size < conn->left ? size : conn->left;
            keep(conn, data, part);
            data += part;
            size -= part;
            conn->left -= part;
            if (conn->left) return true;
            if (conn->state == IN_CHUNK)
                conn->state = AFTER_CHUNK;
            else if (size)
                break; /* pipelined */
            else
                return serve(conn);
        } else if (conn->state == ANSWERING) {
            break;
        } else {
            if (!take_line(conn, &data, &size)) return true;
            size_t line_size = conn->line_size;
            conn->line_size = 0;
            if (conn->state == IN_SIZE) {
                conn->left = strtoull(conn->line, NULL, 16);
                conn->state = conn->left ? IN_CHUNK : IN_TRAILER;
            } else if (conn->state == AFTER_CHUNK) {
                conn->state = IN_SIZE;
            } else if (!line_size) {
                if (size) break;
                return serve(conn);
            }
        }
    }
    fprintf(stderr, "upstream: cut off a connection that sent what was not its turn (state %d)\n", (int)conn->state);
    hang_up(conn);
    return false;
}

static void readable(struct conn *conn) {
    for (;;) {
        ssize_t size = recv(conn->fd, intake, sizeof intake, 0);
        if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (size <= 0) {
            hang_up(conn);
            return;
        }
        if (!take(conn, intake, (size_t)size) || size < INTAKE / 2) return;
    }
}

static void welcome(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
        if (fd < 0) return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *conn = need(calloc(1, sizeof *conn));
        conn->fd = fd;
        served.connections++;
        served.open++;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = conn};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr *any = (struct sockaddr *)&address;
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, any, size) || listen(fd, 4096) || getsockname(fd, any, &size)) fail("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static int patience_ms(void) {
    if (!waiting_first) return -1;
    long long left = waiting_first->due_us - now_us();
    return left <= 0 ? 0 : (int)(left / 1000); /* below a millisecond it spins: delays are kept exactly */
}

static void send_due(void) {
    for (long long now = now_us(); waiting_first && waiting_first->due_us <= now;) {
        struct conn *conn = waiting_first;
        unqueue(conn);
        push(conn);
    }
}

static void read_options(int count, char **words, int *port) {
    static const struct option known[] = {{"port", 1, 0, 'p'}, {"chunks", 1, 0, 'c'}, {"burst", 1, 0, 'b'},
                                          {"delay-us", 1, 0, 'd'}, {"bytes", 1, 0, 's'}, {0, 0, 0, 0}};
    for (int option; (option = getopt_long(count, words, "", known, NULL)) != -1;) {
        long value = optarg ? strtol(optarg, NULL, 10) : 0;
        if (option == 'p') *port = (int)value;
        else if (option == 'c') defaults.chunks = value < 1 ? 1 : value;
        else if (option == 'b') defaults.burst = value;
        else if (option == 'd') defaults.delay_us = value;
        else if (option == 's') defaults.bytes = value;
        else exit(2);
    }
}

int main(int count, char **words) {
    int port = 0;
    read_options(count, words, &port);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on(port), input = STDIN_FILENO;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event)) fail("epoll_ctl");
    event.data.ptr = &input;
    if (epoll_ctl(poller, EPOLL_CTL_ADD, input, &event) && errno != EPERM) fail("epoll_ctl"); /* a file never ends */
    for (struct epoll_event events[EVENTS];;) {
        int found = epoll_wait(poller, events, EVENTS, patience_ms());
        for (int i = 0; i < found; i++) {
            struct conn *conn = events[i].data.ptr;
            if (events[i].data.ptr == &listener) welcome(listener);
            else if (events[i].data.ptr == &input) {
                if (read(input, intake, sizeof intake) <= 0) return 0;
            } else if (events[i].events & (EPOLLERR | EPOLLHUP)) hang_up(conn);
            else if (events[i].events & EPOLLOUT) { /* reading waits for the next round: the connection may be gone */
                push(conn);
            } else readable(conn);
        }
        send_due();
    }
}
