/*
 * Between a program and its C library: one read or write does less than it was asked to, and is not wrong to do so.
 *
 * SHORT_CALL (pread64 or pwrite64), SHORT_AT (the how-manieth such call), SHORT_BYTES (how many bytes it does; from the
 * end, if negative), SHORT_THEN (the errno of the call after it; 0: none). What happened goes to the file SHORT_SAID,
 * which is opened before anything else: the threads that read and write may open nothing.
 *
 * The kernel refuses preadv2 as an older one does, so that all that is read is read by calls that can be cut.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

typedef ssize_t (*call_t)(int, void *, size_t, off64_t);

static long number(const char *name)
{
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : 0;
}

static int said = -1;

__attribute__((constructor)) static void open_said(void)
{
    const char *path = getenv("SHORT_SAID");
    if (path)
        said = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

__attribute__((constructor)) static void refuse_preadv2(void)
{
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_preadv2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = { sizeof(rules) / sizeof(rules[0]), rules };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
        abort();
}

static void say(void)
{
    if (said < 0 || write(said, "x", 1) != 1)
        abort();
}

static ssize_t shortened(const char *name, int fd, void *bytes, size_t count, off64_t offset)
{
    static int calls;
    const char *wanted = getenv("SHORT_CALL");
    call_t real = (call_t)dlsym(RTLD_NEXT, name);
    if (wanted && strcmp(wanted, name) == 0) {
        int call = __sync_add_and_fetch(&calls, 1);
        long at = number("SHORT_AT"), most = number("SHORT_BYTES"), then = number("SHORT_THEN");
        if (call == at) {
            if (most < 0)
                most += (long)count;
            if (most > 0 && (size_t)most < count) {
                count = (size_t)most;
                say();
            }
        } else if (call == at + 1 && then != 0) {
            say();
            errno = (int)then;
            return -1;
        }
    }
    return real(fd, bytes, count, offset);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t offset)
{
    return shortened("pread64", fd, bytes, count, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
    return shortened("pwrite64", fd, (void *)bytes, count, offset);
}
