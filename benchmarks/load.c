/* A closed-loop load generator for HTTP/1.1: each connection sends its next request when it has the answer to the last.

     cc -O2 -o load load.c && ./load PORT CONNECTIONS SECONDS REQUEST...

   Each REQUEST is a file with the bytes of one request, head and body; connections take them in turn. It uses a few
   microseconds a request, because it shares the cores of the server that it measures. Prints one JSON object: requests
   answered with 200, others, seconds, and percentiles of the latency in milliseconds. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 4096
#define MAX_ANSWER (8 << 20)

struct request { char *bytes; size_t size; };
struct connection { int fd; size_t request, sent, received, expected; int status; double started; char *answer; };

static struct request *requests;
static size_t request_count;
static double *latencies;
static size_t answered, failed, capacity;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) { perror(what); exit(1); }

static void read_request(const char *path, struct request *request) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    fseek(file, 0, SEEK_END);
    request->size = ftell(file);
    rewind(file);
    request->bytes = malloc(request->size);
    if (fread(request->bytes, 1, request->size, file) != request->size) die(path);
    fclose(file);
}

static void send_some(struct connection *c) {
    struct request *request = &requests[c->request];
    while (c->sent < request->size) {
        ssize_t n = send(c->fd, request->bytes + c->sent, request->size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) die("send");
        c->sent += n;
    }
}

static void start(struct connection *c) {
    c->request = (c->request + 1) % request_count;
    c->sent = c->received = c->expected = 0;
    c->started = now();
    send_some(c);
}

/* Returns 1 when the answer is complete. */
static int receive(struct connection *c) {
    ssize_t n = recv(c->fd, c->answer + c->received, MAX_ANSWER - 1 - c->received, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) { fprintf(stderr, "the server closed a connection\n"); exit(1); }
    c->received += n;
    c->answer[c->received] = 0;
    if (!c->expected) {
        char *end = memmem(c->answer, c->received, "\r\n\r\n", 4);
        if (!end) return 0;
        *end = 0;
        char *length = strcasestr(c->answer, "\r\ncontent-length:");
        if (!length) { fprintf(stderr, "an answer without Content-Length: %s\n", c->answer); exit(1); }
        c->expected = end + 4 - c->answer + strtoul(length + 17, NULL, 10);
        c->status = atoi(c->answer + 9);
        *end = '\r';
        if (c->expected >= MAX_ANSWER) { fprintf(stderr, "an answer of %zu bytes\n", c->expected); exit(1); }
    }
    return c->received >= c->expected;
}

static void record(struct connection *c, double time) {
    if (c->status != 200) {
        if (!failed++) fprintf(stderr, "%.600s\n", c->answer);
        return;
    }
    if (answered == capacity) latencies = realloc(latencies, (capacity = capacity ? capacity * 2 : 65536) * sizeof(double));
    latencies[answered++] = time - c->started;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(double share) {
    return answered ? latencies[(size_t)(share * (answered - 1))] * 1e3 : 0;
}

int main(int argc, char **argv) {
    if (argc < 5) { fprintf(stderr, "load PORT CONNECTIONS SECONDS REQUEST...\n"); return 2; }
    int port = atoi(argv[1]), count = atoi(argv[2]);
    double seconds = atof(argv[3]);
    if (count < 1 || count > MAX_CONNECTIONS) return 2;
    request_count = argc - 4;
    requests = calloc(request_count, sizeof *requests);
    for (size_t i = 0; i < request_count; i++) read_request(argv[4 + i], &requests[i]);

    static struct connection connections[MAX_CONNECTIONS];
    int epoll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    for (int i = 0; i < count; i++) {
        struct connection *c = &connections[i];
        int yes = 1;
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        c->answer = malloc(MAX_ANSWER);
        c->request = i;
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event)) die("epoll_ctl");
    }
    double begin = now(), end = begin + seconds;
    for (int i = 0; i < count; i++) start(&connections[i]);
    int open = count;
    struct epoll_event events[64];
    while (open) {
        int n = epoll_wait(epoll, events, 64, 30000);
        if (n == 0) { fprintf(stderr, "no answer for 30 seconds\n"); return 1; }
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->fd < 0) continue;
            if (events[i].events & EPOLLOUT) send_some(c);
            while (events[i].events & EPOLLIN && receive(c)) {
                double time = now();
                record(c, time);
                if (time < end) { start(c); break; }
                close(c->fd);
                c->fd = -1;
                open--;
                break;
            }
        }
    }
    seconds = now() - begin;
    qsort(latencies, answered, sizeof *latencies, by_value);
    printf("{\"answered\": %zu, \"failed\": %zu, \"seconds\": %.3f, \"per_second\": %.1f, "
           "\"p50_ms\": %.3f, \"p90_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f}\n",
           answered, failed, seconds, answered / seconds, percentile(0.5), percentile(0.9), percentile(0.99), percentile(1));
    return failed ? 1 : 0;
}
