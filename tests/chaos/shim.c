/* Between a process and its C library: a disk that fails to sync, a wall clock that is wrong.

   Loaded with LD_PRELOAD; driven by a file that shim.py maps as well (CHAOS_SHIM). What
   became of every sync and every rename is appended to a log (CHAOS_SHIM_LOG):

       began|synced|failed INODE PATH     of a file or a folder
       named INODE FROM:TO                after a rename
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t offset;       /* nanoseconds that the wall clock is ahead */
    uint32_t failing;     /* syncs of a million that fail */
};

static const volatile struct control *control;
static int journal = -1;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CHAOS_SHIM"), *log = getenv("CHAOS_SHIM_LOG");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *mapped = mmap(NULL, sizeof *control, PROT_READ, MAP_SHARED, file, 0);
        if (mapped != MAP_FAILED)
            control = mapped;
        close(file);
    }
    if (log)
        journal = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
}

/* ── syncing ─────────────────────────────────────────────────────────────── */

static void note(const char *what, unsigned long inode, const char *path)
{
    char line[4400];
    int length = snprintf(line, sizeof line, "%s %lu %s\n", what, inode, path);
    if (journal >= 0 && length > 0 && write(journal, line, (size_t)length) < 0)
        abort(); /* a log with holes would prove nothing */
}

static int fails(void)
{
    static __thread unsigned seed;
    struct timespec now;
    if (!control || !control->failing)
        return 0;
    if (!seed) {
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now); /* past our own */
        seed = (unsigned)now.tv_nsec ^ (unsigned)getpid();
    }
    return (uint32_t)(rand_r(&seed) % 1000000) < control->failing;
}

static int synced(int descriptor, const char *name)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    char link[64], path[4096] = "?";
    struct stat found;
    int result, saved;
    if (journal < 0)
        return real(descriptor);
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 1] = 0;
    if (fstat(descriptor, &found) != 0)
        return real(descriptor);
    note("began", found.st_ino, path);
    if (fails()) {
        note("failed", found.st_ino, path);
        errno = EIO;
        return -1;
    }
    result = real(descriptor);
    saved = errno;
    note(result == 0 ? "synced" : "failed", found.st_ino, path);
    errno = saved;
    return result;
}

int fsync(int descriptor) { return synced(descriptor, "fsync"); }
int fdatasync(int descriptor) { return synced(descriptor, "fdatasync"); }

int rename(const char *from, const char *to)
{
    int (*real)(const char *, const char *) =
        (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    int result = real(from, to), saved = errno;
    struct stat found;
    if (journal >= 0 && result == 0 && stat(to, &found) == 0) {
        char both[4300];
        snprintf(both, sizeof both, "%s:%s", from, to);
        note("named", found.st_ino, both);
    }
    errno = saved;
    return result;
}

/* ── the wall clock ──────────────────────────────────────────────────────── */

static int64_t offset(void) { return control ? control->offset : 0; }

static void shift(struct timespec *moment, int64_t by)
{
    int64_t all = (int64_t)moment->tv_sec * 1000000000 + moment->tv_nsec + by;
    moment->tv_sec = all / 1000000000;
    moment->tv_nsec = all % 1000000000;
}

int clock_gettime(clockid_t clock, struct timespec *moment)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, moment);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        shift(moment, offset());
    return result;
}

int gettimeofday(struct timeval *restrict moment, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    moment->tv_sec = now.tv_sec;
    moment->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where)
        *where = now.tv_sec;
    return now.tv_sec;
}

/* Moments of the wall clock until which somebody waits, back to the kernel's. What lies
   before 2001 is of a monotonic clock. */
static struct timespec true_moment(const struct timespec *moment)
{
    struct timespec found = *moment;
    if (found.tv_sec > 1000000000)
        shift(&found, -offset());
    return found;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                           const struct timespec *until)
{
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec found = true_moment(until);
    if (!real) {
        void *symbol = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
        if (!symbol)
            symbol = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
        real = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))symbol;
    }
    return real(condition, mutex, &found);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until)
{
    static int (*real)(sem_t *, const struct timespec *);
    struct timespec found = true_moment(until);
    if (!real)
        real = (int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait");
    return real(semaphore, &found);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until)
{
    static int (*real)(pthread_mutex_t *, const struct timespec *);
    struct timespec found = true_moment(until);
    if (!real)
        real = (int (*)(pthread_mutex_t *, const struct timespec *))dlsym(
            RTLD_NEXT, "pthread_mutex_timedlock");
    return real(mutex, &found);
}
