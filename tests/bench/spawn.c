/* References in C.
 *   spawn rate THREADS COUNT   start COUNT times /bin/true and wait for each; prints tasks per second
 *   spawn clock MILLISECONDS   sleep, print CLOCK_MONOTONIC in ns, exit: a child whose end is known
 *   spawn latency COUNT        µs from such a child's clock to the return of waitpid, one line per child
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void start(pid_t *pid, posix_spawn_file_actions_t *actions, char *const argv[]) {
    if (posix_spawn(pid, argv[0], actions, NULL, argv, environ) != 0) {
        perror("posix_spawn");
        exit(1);
    }
}

static void *spawn_some(void *count) {
    char *argv[] = {"/bin/true", NULL};
    for (long left = (long)count; left > 0; left--) {
        pid_t pid;
        int status;
        start(&pid, NULL, argv);
        if (waitpid(pid, &status, 0) != pid || status != 0)
            exit(1);
    }
    return NULL;
}

static int rate(long threads, long count) {
    pthread_t all[64];
    long long begin = now_ns();
    if (threads < 1 || threads > 64)
        return 2;
    for (long i = 0; i < threads; i++)
        pthread_create(&all[i], NULL, spawn_some, (void *)(count / threads));
    for (long i = 0; i < threads; i++)
        pthread_join(all[i], NULL);
    printf("%.3f\n", (double)(count / threads * threads) * 1e9 / (double)(now_ns() - begin));
    return 0;
}

static int clock_child(long milliseconds) {
    char text[32];
    usleep((useconds_t)milliseconds * 1000);
    int size = snprintf(text, sizeof text, "%lld\n", now_ns());
    _exit(write(1, text, (size_t)size) == size ? 0 : 1);
}

static int latency(char *self, long count) {
    char *argv[] = {self, "clock", "5", NULL};
    while (count-- > 0) {
        int ends[2], status;
        char text[32] = {0};
        pid_t pid;
        posix_spawn_file_actions_t actions;
        if (pipe(ends) != 0)
            return 1;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
        start(&pid, &actions, argv);
        waitpid(pid, &status, 0);
        long long seen = now_ns();
        if (read(ends[0], text, sizeof text - 1) <= 0)
            return 1;
        printf("%.1f\n", (double)(seen - atoll(text)) / 1000.0);
        posix_spawn_file_actions_destroy(&actions);
        close(ends[0]);
        close(ends[1]);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "rate"))
        return rate(atol(argv[2]), atol(argv[3]));
    if (argc == 3 && !strcmp(argv[1], "clock"))
        return clock_child(atol(argv[2]));
    if (argc == 3 && !strcmp(argv[1], "latency"))
        return latency(argv[0], atol(argv[2]));
    fprintf(stderr, "usage: spawn rate THREADS COUNT | clock MILLISECONDS | latency COUNT\n");
    return 2;
}
