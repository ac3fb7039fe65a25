/* Writes down what a process does to the files below one folder, so that a power cut at any instant can be played back.
 *
 * Loaded by LD_PRELOAD. Every call that changes a file, a name or what is durable is carried out as usual and appended,
 * with its data and the times before and after it (CLOCK_MONOTONIC), to POWERCUT_JOURNAL/<process id>. The time after a
 * call is taken before its caller goes on: what a process says because of a call is said after that time.
 * On request (POWERCUT_FAIL) a call fails instead, as on a broken or a full disk.
 *
 *   POWERCUT_ROOT     the folder that is watched, a real path
 *   POWERCUT_JOURNAL  the folder of the journals, outside the root
 *   POWERCUT_FAIL     sync|write:<part of a path>:<n>:<times>:<errno>   the n-th call that fits, and the ones after it;
 *                     a part that ends with $ is a path's end; after a negative errno the process kills itself
 *   POWERCUT_ARM      a file: calls count for POWERCUT_FAIL once it exists
 *   POWERCUT_KILL     a file: once it exists the process kills itself (SIGKILL) between two calls, so that no call is
 *                     done and not written down
 *
 * tests/powercut/journal.py reads what this writes: the struct and the kinds are the same there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8, "the 64-bit names are taken to be the same calls");

enum kind {
    OPENED = 1, /* to write. a: 1 if it was made by this call, 2 if it was emptied */
    WRITTEN,    /* a: where */
    TRUNCATED,  /* a: the new length */
    ALLOCATED,  /* a: the least length from now on */
    SYNCED,
    RENAMED,
    UNLINKED,
    FOLDER_MADE,
    FOLDER_GONE,
    LINKED,
};

struct record {
    uint32_t bytes; /* of all: this, two paths, data */
    uint16_t kind, error;
    uint64_t began_ns, ended_ns, inode;
    int64_t a;
    uint32_t path_bytes, other_bytes;
};

struct call { /* one call under way; CALL declares it and says that it is over */
    uint64_t began_ns;
    int is_counted;
    char path[PATH_MAX];
};

static char root[PATH_MAX], journal[PATH_MAX], fail_part[PATH_MAX];
static size_t root_length;
static const char *arm, *kill_file;
static enum kind fail_kind;
static long fail_first, fail_times, fail_seen;
static int fail_errno, has_to_end;
static int journal_handle = -1;
static ino_t journal_inode;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t under_way = PTHREAD_RWLOCK_INITIALIZER; /* read: a call; written: the end */

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "powercut: this libc has no %s\n", name);
        _exit(99);
    }
    return found;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

__attribute__((constructor)) static void begin(void) {
    const char *at = getenv("POWERCUT_ROOT"), *to = getenv("POWERCUT_JOURNAL"), *fail = getenv("POWERCUT_FAIL");
    char kind[8] = "";
    arm = getenv("POWERCUT_ARM");
    kill_file = getenv("POWERCUT_KILL");
    if (!at || !to)
        return;
    snprintf(journal, sizeof journal, "%s", to);
    if (fail) {
        if (sscanf(fail, "%7[a-z]:%4000[^:]:%ld:%ld:%d", kind, fail_part, &fail_first, &fail_times, &fail_errno) != 5) {
            fprintf(stderr, "powercut: cannot read POWERCUT_FAIL=%s\n", fail);
            _exit(99);
        }
        fail_kind = strcmp(kind, "sync") == 0 ? SYNCED : WRITTEN;
    }
    snprintf(root, sizeof root, "%s", at);
    root_length = strlen(root);
}

static int is_below_root(const char *path) {
    return root_length && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || !path[root_length]);
}

static void counted(struct call *call) {
    if (!call->is_counted && (has_to_end || (kill_file && !access(kill_file, F_OK)))) {
        pthread_rwlock_wrlock(&under_way);
        kill(getpid(), SIGKILL);
        pause();
    }
    if (!call->is_counted)
        pthread_rwlock_rdlock(&under_way);
    call->is_counted = 1;
    call->began_ns = now_ns();
}

static void over(struct call *call) {
    if (call->is_counted)
        pthread_rwlock_unlock(&under_way);
}

#define CALL                                                                                                           \
    __attribute__((cleanup(over))) struct call call;                                                                   \
    call.is_counted = 0

/* The whole path of a name in a folder; 0 when it is not below the root. */
static int path_of(int folder, const char *name, char *path, struct call *call) {
    char link[64], base[PATH_MAX] = "";
    if (!root_length || !name)
        return 0;
    if (name[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base))
                return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0)
                return 0;
            base[length] = 0;
        }
    }
    if (snprintf(path, PATH_MAX, "%s%s%s", base, base[0] ? "/" : "", name) >= PATH_MAX)
        return 0;
    if (!is_below_root(path))
        return 0;
    counted(call);
    return 1;
}

/* The inode behind a handle that is an ordinary file or a folder below the root, else 0. No table of handles: it could
 * not follow every close and dup. */
static ino_t watched(int handle, struct call *call) {
    struct stat status;
    char link[64];
    if (!root_length || fstat(handle, &status) || !(S_ISREG(status.st_mode) || S_ISDIR(status.st_mode)))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, call->path, sizeof call->path - 1);
    if (length < 0)
        return 0;
    call->path[length] = 0;
    if (!is_below_root(call->path))
        return 0;
    counted(call);
    return status.st_ino;
}

static ino_t inode_at(const char *path) {
    struct stat status;
    return lstat(path, &status) ? 0 : status.st_ino;
}

static void open_journal(void) {
    struct stat status;
    char path[PATH_MAX + 32];
    /* A child may have closed all handles it does not know, and ours may be another file by now. */
    if (journal_handle >= 0 && !fstat(journal_handle, &status) && status.st_ino == journal_inode)
        return;
    snprintf(path, sizeof path, "%s/%ld", journal, (long)getpid());
    journal_handle = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (journal_handle < 0 || fstat(journal_handle, &status)) {
        fprintf(stderr, "powercut: cannot write %s: %s\n", path, strerror(errno));
        _exit(99);
    }
    journal_inode = status.st_ino;
}

static void note(enum kind kind, const struct call *call, int error, ino_t inode, int64_t a, const char *other,
                 const struct iovec *data, int pieces, size_t data_bytes) {
    struct record record = {.kind = kind, .error = (uint16_t)error, .began_ns = call->began_ns, .inode = inode, .a = a};
    struct iovec all[3 + 64] = {{&record, sizeof record}};
    int before = errno, count = 1;
    record.ended_ns = now_ns();
    record.path_bytes = (uint32_t)strlen(call->path);
    record.other_bytes = other ? (uint32_t)strlen(other) : 0;
    record.bytes = (uint32_t)(sizeof record + record.path_bytes + record.other_bytes + data_bytes);
    all[count++] = (struct iovec){(void *)call->path, record.path_bytes};
    if (other)
        all[count++] = (struct iovec){(void *)other, record.other_bytes};
    for (int i = 0; i < pieces && data_bytes; i++) {
        size_t part = data[i].iov_len < data_bytes ? data[i].iov_len : data_bytes;
        all[count++] = (struct iovec){data[i].iov_base, part};
        data_bytes -= part;
    }
    pthread_mutex_lock(&lock);
    open_journal();
    ssize_t written = REAL(writev)(journal_handle, all, count);
    pthread_mutex_unlock(&lock);
    if (data_bytes || written != (ssize_t)record.bytes) { /* half a journal would prove anything */
        fprintf(stderr, "powercut: the journal could not be written: %s\n", strerror(errno));
        _exit(99);
    }
    errno = before;
}

static int fits(const char *path) {
    size_t length = strlen(path), part = strlen(fail_part);
    if (!part || fail_part[part - 1] != '$')
        return strstr(path, fail_part) != NULL;
    return length >= part - 1 && strncmp(path + length - (part - 1), fail_part, part - 1) == 0;
}

/* Whether this call is one of those that are to fail; errno is set then. */
static int fails(enum kind kind, const struct call *call) {
    if (kind != fail_kind || !fits(call->path + root_length) || (arm && access(arm, F_OK)))
        return 0;
    long number = __atomic_add_fetch(&fail_seen, 1, __ATOMIC_SEQ_CST);
    if (number < fail_first || number >= fail_first + fail_times)
        return 0;
    has_to_end = fail_errno < 0; /* at the next call: this one is written down first */
    errno = abs(fail_errno);
    return 1;
}

static int do_open(int folder, const char *name, int flags, mode_t mode) {
    CALL;
    struct stat status;
    if (!path_of(folder, name, call.path, &call))
        return REAL(openat)(folder, name, flags, mode);
    int was_there = inode_at(call.path) != 0;
    int handle = REAL(openat)(folder, name, flags, mode);
    if (handle >= 0 && !fstat(handle, &status) && !(was_there && (flags & O_ACCMODE) == O_RDONLY))
        note(OPENED, &call, 0, status.st_ino, was_there ? (flags & O_TRUNC ? 2 : 0) : 1, NULL, NULL, 0, 0);
    return handle;
}

#define MODE_OF(flags, mode)                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {                                                            \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode = (mode_t)va_arg(more, int);                                                                              \
        va_end(more);                                                                                                  \
    }

int open(const char *name, int flags, ...) {
    MODE_OF(flags, mode)
    return do_open(AT_FDCWD, name, flags, mode);
}

int open64(const char *name, int flags, ...) {
    MODE_OF(flags, mode)
    return do_open(AT_FDCWD, name, flags, mode);
}

int openat(int folder, const char *name, int flags, ...) {
    MODE_OF(flags, mode)
    return do_open(folder, name, flags, mode);
}

int openat64(int folder, const char *name, int flags, ...) {
    MODE_OF(flags, mode)
    return do_open(folder, name, flags, mode);
}

int creat(const char *name, mode_t mode) { return do_open(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return do_open(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* `at` < 0: where the handle stands; behind the call it stands at the end of what was written, also with O_APPEND. */
static ssize_t do_write(int handle, const struct iovec *data, int pieces, off_t at) {
    CALL;
    ino_t inode = watched(handle, &call);
    if (inode && fails(WRITTEN, &call)) {
        note(WRITTEN, &call, errno, inode, at, NULL, NULL, 0, 0);
        return -1;
    }
    ssize_t done = at < 0 ? REAL(writev)(handle, data, pieces) : REAL(pwritev)(handle, data, pieces, at);
    if (inode && done > 0) {
        off_t from = at < 0 ? lseek(handle, 0, SEEK_CUR) - done : at;
        note(WRITTEN, &call, 0, inode, from, NULL, data, pieces, (size_t)done);
    }
    return done;
}

ssize_t write(int handle, const void *data, size_t bytes) {
    struct iovec one = {(void *)data, bytes};
    return do_write(handle, &one, 1, -1);
}

ssize_t writev(int handle, const struct iovec *data, int pieces) {
    if (pieces > 64) /* a short write is allowed, and `note` has room for so many */
        pieces = 64;
    return do_write(handle, data, pieces, -1);
}

ssize_t pwrite(int handle, const void *data, size_t bytes, off_t at) {
    struct iovec one = {(void *)data, bytes};
    return do_write(handle, &one, 1, at);
}

ssize_t pwrite64(int handle, const void *data, size_t bytes, off_t at) { return pwrite(handle, data, bytes, at); }

static int sized(enum kind kind, int result, int64_t a, const struct call *call, ino_t inode) {
    if (inode && result == 0)
        note(kind, call, 0, inode, a, NULL, NULL, 0, 0);
    return result;
}

int ftruncate(int handle, off_t length) {
    CALL;
    ino_t inode = watched(handle, &call);
    return sized(TRUNCATED, REAL(ftruncate)(handle, length), length, &call, inode);
}

int ftruncate64(int handle, off_t length) { return ftruncate(handle, length); }

int fallocate(int handle, int mode, off_t at, off_t length) {
    CALL;
    ino_t inode = watched(handle, &call);
    return sized(ALLOCATED, REAL(fallocate)(handle, mode, at, length), at + length, &call, inode);
}

int fallocate64(int handle, int mode, off_t at, off_t length) { return fallocate(handle, mode, at, length); }

int posix_fallocate(int handle, off_t at, off_t length) {
    CALL;
    ino_t inode = watched(handle, &call);
    return sized(ALLOCATED, REAL(posix_fallocate)(handle, at, length), at + length, &call, inode);
}

int posix_fallocate64(int handle, off_t at, off_t length) { return posix_fallocate(handle, at, length); }

static int do_sync(int handle, int (*sync)(int)) {
    CALL;
    ino_t inode = watched(handle, &call);
    int result = inode && fails(SYNCED, &call) ? -1 : sync(handle);
    if (inode)
        note(SYNCED, &call, result ? errno : 0, inode, 0, NULL, NULL, 0, 0);
    return result;
}

int fsync(int handle) { return do_sync(handle, REAL(fsync)); }
int fdatasync(int handle) { return do_sync(handle, REAL(fdatasync)); }

int renameat2(int from, const char *old, int to, const char *new, unsigned int flags) {
    CALL;
    char other[PATH_MAX];
    int is_watched = path_of(from, old, call.path, &call) & path_of(to, new, other, &call);
    int result = REAL(renameat2)(from, old, to, new, flags);
    if (is_watched && result == 0)
        note(RENAMED, &call, 0, inode_at(other), 0, other, NULL, 0, 0);
    return result;
}

int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int folder, const char *name, int flags) {
    CALL;
    int is_watched = path_of(folder, name, call.path, &call);
    ino_t inode = is_watched ? inode_at(call.path) : 0;
    int result = REAL(unlinkat)(folder, name, flags);
    if (is_watched && result == 0)
        note(flags & AT_REMOVEDIR ? FOLDER_GONE : UNLINKED, &call, 0, inode, 0, NULL, NULL, 0, 0);
    return result;
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t mode) {
    CALL;
    int is_watched = path_of(folder, name, call.path, &call);
    int result = REAL(mkdirat)(folder, name, mode);
    if (is_watched && result == 0)
        note(FOLDER_MADE, &call, 0, inode_at(call.path), 0, NULL, NULL, 0, 0);
    return result;
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int linkat(int from, const char *old, int to, const char *new, int flags) {
    CALL;
    char other[PATH_MAX];
    int is_watched = path_of(from, old, call.path, &call) & path_of(to, new, other, &call);
    int result = REAL(linkat)(from, old, to, new, flags);
    if (is_watched && result == 0)
        note(LINKED, &call, 0, inode_at(other), 0, other, NULL, 0, 0);
    return result;
}

int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }
