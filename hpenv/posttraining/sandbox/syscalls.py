"""System calls that a program may make, as data. Every other call is refused.

Numbers are those of the kernel's headers (`asm/unistd_64.h` for x86_64, `asm-generic/unistd.h` for
aarch64), and a test compares them. The list is what CPython 3.11 to 3.14 needs to import, compute
and print, and no more. No call makes a process or a thread, opens a socket, changes a file's owner,
mode, times or length, maps a file into memory without opening it, or reaches another process.

`zygote.py` loads this file by its path, so it imports nothing.
"""

#: Values of seccomp_data.arch (linux/audit.h). A call through the entry of another architecture
#: kills the process.
AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

#: On x86_64, numbers from here on belong to the x32 interface, which would bypass a list of plain
#: numbers.
X32_BIT = 0x40000000

NUMBERS = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10,
        "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
        "pread64": 17, "readv": 19, "writev": 20, "sched_yield": 24, "mremap": 25, "madvise": 28,
        "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39, "exit": 60, "kill": 62, "fcntl": 72,
        "getcwd": 79, "gettimeofday": 96, "getuid": 102, "getgid": 104, "geteuid": 107,
        "getegid": 108, "getppid": 110, "capset": 126, "sigaltstack": 131, "gettid": 186,
        "time": 201, "futex": 202, "getdents64": 217, "restart_syscall": 219, "clock_gettime": 228,
        "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "tgkill": 234,
        "openat": 257, "newfstatat": 262, "dup3": 292, "getrandom": 318, "statx": 332,
        "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
    },
    "aarch64": {
        "getcwd": 17, "dup": 23, "dup3": 24, "fcntl": 25, "openat": 56, "close": 57,
        "getdents64": 61, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66,
        "pread64": 67, "newfstatat": 79, "fstat": 80, "capset": 91, "exit": 93, "exit_group": 94,
        "futex": 98, "nanosleep": 101, "clock_gettime": 113, "clock_getres": 114,
        "clock_nanosleep": 115, "sched_yield": 124, "restart_syscall": 128, "kill": 129,
        "tgkill": 131, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135,
        "rt_sigreturn": 139, "gettimeofday": 169, "getpid": 172, "getppid": 173, "getuid": 174,
        "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "brk": 214, "munmap": 215,
        "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233, "getrandom": 278, "statx": 291,
        "landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446,
    },
}  # fmt: skip

#: Calls allowed with any arguments, the frequent ones first.
ALLOWED = (
    "read", "write", "mmap", "munmap", "brk", "newfstatat", "fstat", "lseek", "close", "mprotect",
    "mremap", "madvise", "futex", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "pread64",
    "readv", "writev", "getdents64", "getcwd", "dup", "dup2", "dup3", "getpid", "getppid", "gettid",
    "getuid", "geteuid", "getgid", "getegid", "getrandom", "sched_yield", "clock_gettime",
    "clock_getres", "gettimeofday", "time", "nanosleep", "clock_nanosleep", "restart_syscall",
    "sigaltstack", "exit", "exit_group",
)  # fmt: skip

#: Calls allowed for these values of one argument: name -> (index of the argument, values). F_SETFL,
#: F_SETOWN and F_SETSIG are left out of fcntl: with O_ASYNC they send any signal to any process of
#: the same user.
ALLOWED_FOR = {
    # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
    "fcntl": (1, (0, 1, 2, 3, 1030))
}

#: Calls allowed on the process itself, as first argument: abort() and os.kill(os.getpid(), ...).
ALLOWED_ON_ITSELF = ("kill", "tgkill")

#: From this call's number on, calls are answered "not implemented" instead of "not permitted". The
#: C library then falls back to the older call that does the same.
FIRST_RECENT = "statx"
