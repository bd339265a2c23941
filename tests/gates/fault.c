/* Fails the n-th call of the file layer below one folder, for tests: an LD_PRELOAD library.
 *
 * Python, pyarrow and DuckDB all reach the disk through these functions of libc. `fault_arm` names
 * the folder, what happens and when; a process that is forked from an armed one is armed too, and
 * both count in one shared page. While it is armed the clock of the wall stands still, so that two
 * runs write the same times.
 *
 * Calls that are counted: those that change the disk (open for writing, write, rename, unlink,
 * mkdir, link, truncate, chmod, fsync), and if `reads` is set also open for reading and read.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OFF, COUNT, KILL, FAIL_ONCE, FULL, SHORT, HALF, TEAR };
/* COUNT: nothing fails. KILL: SIGKILL before the call. FAIL_ONCE: EIO once. FULL: the disk is full
 * from then on. SHORT: a write takes half. HALF: a write takes half, then the disk is full. TEAR: a
 * write takes half, then SIGKILL. The last three meet only writes; other calls are not counted. */

int fault_mode;
#define mode fault_mode
static int with_reads;
static long target;
static char root[PATH_MAX];
static size_t root_length;
static atomic_long *calls;
static atomic_long own_calls;
static atomic_int full;

#define REAL(name) static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int fault_arm(const char *folder, int what, long number, int reads) {
  if (!calls) {
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    calls = page == MAP_FAILED ? &own_calls : page;
  }
  *calls = 0;
  full = 0;
  strncpy(root, folder, sizeof root - 1);
  root_length = strlen(root);
  target = number;
  with_reads = reads;
  mode = what;
  return 0;
}

long fault_calls(void) { return calls ? (long)*calls : 0; }

static int below(const char *path) {
  return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int path_below(int folder, const char *path) {
  char whole[2 * PATH_MAX], link[64];
  if (!mode || !path) return 0;
  if (path[0] == '/') return below(path);
  ssize_t size;
  if (folder == AT_FDCWD) {
    size = getcwd(whole, PATH_MAX) ? (ssize_t)strlen(whole) : -1;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    size = readlink(link, whole, PATH_MAX);
  }
  if (size < 0 || size + strlen(path) + 2 > sizeof whole) return 0;
  whole[size] = '/';
  strcpy(whole + size + 1, path);
  return below(whole);
}

static int fd_below(int fd) {
  char link[64], path[PATH_MAX];
  if (!mode) return 0;
  int kept = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  errno = kept;
  if (size < 0) return 0;
  path[size] = 0;
  return below(path);
}

static void die(void) {
  syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
  for (;;) pause();
}

/* 0: go on. -1: fail, errno is set. 1: take half, see the modes. */
static int meet(int is_write, int takes_room) {
  if (!mode) return 0;
  if (full && takes_room) { errno = ENOSPC; return -1; }
  if (mode >= SHORT && !is_write) return 0;
  if (++*calls != target) return 0;
  switch (mode) {
    case KILL: die(); break;
    case FAIL_ONCE: errno = EIO; return -1;
    case FULL:
      full = 1;
      if (!takes_room) return 0;
      errno = ENOSPC;
      return -1;
    case SHORT: case HALF: case TEAR: return 1;
  }
  return 0;
}

static ssize_t after_half(ssize_t written) {
  if (mode == TEAR) die();
  if (mode == HALF) full = 1;
  return written;
}

ssize_t write(int fd, const void *buffer, size_t size) {
  REAL(write);
  if (fd_below(fd)) {
    int met = meet(1, 1);
    if (met < 0) return -1;
    if (met > 0) return after_half(real(fd, buffer, size > 1 ? size / 2 : size));
  }
  return real(fd, buffer, size);
}

ssize_t pwrite64(int fd, const void *buffer, size_t size, off64_t offset) {
  REAL(pwrite64);
  if (fd_below(fd)) {
    int met = meet(1, 1);
    if (met < 0) return -1;
    if (met > 0) return after_half(real(fd, buffer, size > 1 ? size / 2 : size, offset));
  }
  return real(fd, buffer, size, offset);
}
ssize_t pwrite(int fd, const void *buffer, size_t size, off_t offset) {
  return pwrite64(fd, buffer, size, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  if (fd_below(fd)) {
    int met = meet(1, 1);
    if (met < 0) return -1;
    if (met > 0 && count > 0) {
      struct iovec half = {parts[0].iov_base, parts[0].iov_len > 1 ? parts[0].iov_len / 2 : 1};
      return after_half(real(fd, &half, 1));
    }
  }
  return real(fd, parts, count);
}

ssize_t read(int fd, void *buffer, size_t size) {
  REAL(read);
  if (mode && with_reads && fd_below(fd) && meet(0, 0)) return -1;
  return real(fd, buffer, size);
}

ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset) {
  REAL(pread64);
  if (mode && with_reads && fd_below(fd) && meet(0, 0)) return -1;
  return real(fd, buffer, size, offset);
}
ssize_t pread(int fd, void *buffer, size_t size, off_t offset) {
  return pread64(fd, buffer, size, offset);
}

static int meet_open(int folder, const char *path, int flags) {
  int writes = (flags & (O_ACCMODE | O_CREAT | O_TRUNC)) != O_RDONLY;
  if (!mode || !(writes || with_reads) || !path_below(folder, path)) return 0;
  return meet(0, (flags & O_CREAT) != 0);
}

#define MODE_OF(flags) \
  mode_t permissions = 0; \
  if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) { \
    va_list rest; \
    va_start(rest, flags); \
    permissions = va_arg(rest, mode_t); \
    va_end(rest); \
  }

int open64(const char *path, int flags, ...) {
  REAL(open64);
  MODE_OF(flags)
  return meet_open(AT_FDCWD, path, flags) ? -1 : real(path, flags, permissions);
}
int open(const char *path, int flags, ...) {
  REAL(open);
  MODE_OF(flags)
  return meet_open(AT_FDCWD, path, flags) ? -1 : real(path, flags, permissions);
}
int openat64(int folder, const char *path, int flags, ...) {
  REAL(openat64);
  MODE_OF(flags)
  return meet_open(folder, path, flags) ? -1 : real(folder, path, flags, permissions);
}
int openat(int folder, const char *path, int flags, ...) {
  REAL(openat);
  MODE_OF(flags)
  return meet_open(folder, path, flags) ? -1 : real(folder, path, flags, permissions);
}

#define OF_PATH(name, types, names, path, room) \
  int name types { \
    REAL(name); \
    return mode && path_below(AT_FDCWD, path) && meet(0, room) ? -1 : real names; \
  }
#define OF_FOLDER(name, types, names, folder, path, room) \
  int name types { \
    REAL(name); \
    return mode && path_below(folder, path) && meet(0, room) ? -1 : real names; \
  }
#define OF_FD(name, types, names, room) \
  int name types { \
    REAL(name); \
    return mode && fd_below(fd) && meet(0, room) ? -1 : real names; \
  }

OF_PATH(rename, (const char *from, const char *to), (from, to), to, 0)
OF_FOLDER(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), b, to, 0)
OF_FOLDER(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags), b, to, 0)
OF_PATH(unlink, (const char *path), (path), path, 0)
OF_FOLDER(unlinkat, (int folder, const char *path, int flags), (folder, path, flags), folder, path, 0)
OF_PATH(rmdir, (const char *path), (path), path, 0)
OF_PATH(mkdir, (const char *path, mode_t permissions), (path, permissions), path, 1)
OF_FOLDER(mkdirat, (int folder, const char *path, mode_t permissions), (folder, path, permissions), folder, path, 1)
OF_PATH(link, (const char *from, const char *to), (from, to), to, 1)
OF_PATH(symlink, (const char *from, const char *to), (from, to), to, 1)
OF_PATH(chmod, (const char *path, mode_t permissions), (path, permissions), path, 0)
OF_FD(fchmod, (int fd, mode_t permissions), (fd, permissions), 0)
OF_FD(fsync, (int fd), (fd), 0)
OF_FD(fdatasync, (int fd), (fd), 0)
OF_FD(ftruncate64, (int fd, off64_t size), (fd, size), 0)
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int clock_gettime(clockid_t which, struct timespec *time) {
  REAL(clock_gettime);
  int code = real(which, time);
  if (mode && !code && which == CLOCK_REALTIME) {
    time->tv_sec = 1785000000;
    time->tv_nsec = 123456789;
  }
  return code;
}
