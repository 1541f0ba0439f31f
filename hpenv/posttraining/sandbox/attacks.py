"""Attacks on the sandbox, as a table that the self-check and the tests run.

An attack is a program. Everything forbidden goes through `attempt`, which prints "refused" and the
exception, "BREACH" and the gain, or "BROKEN" if the attack itself is at fault. An attack is
contained if there is evidence that it tried, nothing says BREACH or BROKEN, the bait is untouched,
and the outcome is what its row expects. The attacks on the verdict look for a token that only the
parent knows.

The file is long because it is one table, whose rows are data.
"""

import platform
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from hpenv.posttraining.sandbox.bait import Bait, lay_bait
from hpenv.posttraining.sandbox.box import Sandbox
from hpenv.posttraining.sandbox.jobs import Call, Outcome

_PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action, *arguments):
    try:
        gained = action(*arguments)
    except (NameError, AttributeError, TypeError) as error:
        print("BROKEN", error, flush=True)
    except BaseException as error:
        print("refused", type(error).__name__, flush=True)
    else:
        print("BREACH", repr(gained)[:200], flush=True)
def raw(function, *arguments):
    result = function(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def f(x):
    return x
"""


@dataclass(frozen=True)
class Attack:
    """One row of the table."""

    name: str
    tries: str  # what it tries, for a person
    source: str  # follows the prelude, with BAIT as the result of `Bait.clues`
    expected: Callable[[Outcome], bool]
    calls: tuple[Call, ...] = ()
    scratch: bool = False
    machine: str = ""  # "" is any
    breaks_nothing: bool = False  # whether it may run outside the sandbox, where it has to succeed

    def program(self, bait: Bait) -> str:
        """Returns the source of the whole program."""
        return f"{_PRELUDE}BAIT = {bait.clues()!r}\n{textwrap.dedent(self.source)}"

    def is_contained(self, outcome: Outcome, bait: Bait) -> bool:
        """Returns whether the attack was made and gained nothing."""
        said = outcome.stdout + outcome.stderr + repr(outcome.returned) + repr(outcome.files)
        return (
            "BREACH" not in outcome.stdout
            and "BROKEN" not in outcome.stdout
            and bait.token not in said
            and outcome.killed_by != "zygote"
            and self.expected(outcome)
            and bait.is_intact()
        )


def run_attack(box: Sandbox, attack: Attack) -> tuple[bool, Outcome]:
    """Runs one attack, and checks that the next program finds the sandbox as it was.

    Returns:
        Whether the attack was contained, and its outcome.
    """
    with lay_bait() as bait:
        outcome = box.run(attack.program(bait), attack.calls, attack.scratch)
        is_contained = attack.is_contained(outcome, bait)
    after = box.run("def f(x):\n    return [x]\n", [Call("f", (1,))])
    healthy = (
        after.exit_code == 0
        and [result.value for result in after.returned] == [[1]]
        and not after.files
    )
    return is_contained and healthy, outcome


def only_refusals(outcome: Outcome) -> bool:
    """Returns whether every attempt was refused, and the program came to its end.

    There must be at least one attempt.
    """
    return "refused" in outcome.stdout and outcome.exit_code == 0 and not outcome.killed_by


def ends_by(*reasons: str) -> Callable[[Outcome], bool]:
    """Returns a check that one of these reasons ended the program."""
    return lambda outcome: outcome.killed_by in reasons and outcome.exit_code in (None, 1)


def raises(*errors: str) -> Callable[[Outcome], bool]:
    """Returns a check that the calls were answered by exactly these exceptions."""
    return lambda outcome: tuple(result.error for result in outcome.returned) == errors


def either(*checks: Callable[[Outcome], bool]) -> Callable[[Outcome], bool]:
    """Returns a check that one of these checks holds."""
    return lambda outcome: any(check(outcome) for check in checks)


def no_answer(outcome: Outcome) -> bool:
    """Returns whether no call was answered."""
    return not outcome.returned


_F = (Call("f", (1,)),)

_ATTACKS = (
    # Files
    Attack(
        "read files",
        "open /etc/passwd, a file of the home, of this package, of a temporary folder; with open, "
        "mmap and O_PATH",
        """
        for path in (
            "/etc/passwd", BAIT["home_file"], BAIT["source"], BAIT["secret"],
            "/proc/self/../../etc/passwd",
        ):
            attempt(lambda: open(path).read())
            attempt(lambda: os.read(os.open(path, os.O_RDONLY | os.O_NOATIME), 100))
            attempt(lambda: os.read(os.open(path, os.O_PATH), 100))
            attempt(lambda: os.open(f"/proc/self/fd/{os.open(path, os.O_PATH)}", os.O_RDONLY))
        """,
        only_refusals,
    ),
    Attack(
        "read the secret",
        "open a private file whose path is known",
        "attempt(lambda: open(BAIT['secret']).read())",
        only_refusals,
        breaks_nothing=True,
    ),
    Attack(
        "list folders",
        "list /, the home, /tmp, /proc, the package's folder, site-packages",
        """
        folders = [
            "/", BAIT["home"], "/tmp", "/proc", os.path.dirname(BAIT["source"]), BAIT["folder"],
        ]
        folders.append(os.path.join(os.path.dirname(os.__file__), "site-packages"))
        for folder in folders:
            attempt(os.listdir, folder)
            attempt(os.chdir, folder)
        """,
        only_refusals,
        breaks_nothing=True,
    ),
    Attack(
        "read /proc and /sys",
        "environment, memory and descriptors of the parent, the zygote and itself",
        """
        for process in (BAIT["parent"], os.getppid(), "self", 1):
            for name in ("environ", "mem", "maps", "cmdline", "status", "fd/0"):
                attempt(lambda: open(f"/proc/{process}/{name}", "rb").read(10))
        attempt(lambda: open("/sys/kernel/vmcoreinfo").read())
        attempt(os.readlink, "/proc/self/exe")
        """,
        only_refusals,
    ),
    Attack(
        "write outside",
        "make, overwrite and append to files in /tmp, /dev/shm, the home, the standard library",
        """
        stdlib = os.path.dirname(os.__file__)
        for folder in ("/tmp", "/dev/shm", "/var/tmp", BAIT["folder"], BAIT["home"], stdlib, "."):
            attempt(lambda: open(os.path.join(folder, "planted"), "w").write("x"))
            attempt(lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR))
        for flags in (
            os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_TRUNC,
            os.O_RDONLY | os.O_CREAT,
        ):
            attempt(os.open, BAIT["secret"], flags)
            attempt(os.open, os.__file__, flags)
        """,
        only_refusals,
    ),
    Attack(
        "write outside, with a scratch folder",
        "the same where the program may write, and through .. and /proc",
        """
        open("mine", "w").write("x")
        scratch = os.getcwd()
        for folder in (
            "/tmp", "..", "/dev/shm", BAIT["folder"], os.path.dirname(os.__file__),
            "/proc/self/cwd/..",
        ):
            attempt(lambda: open(os.path.join(folder, "planted"), "w").write("x"))
        for flags in (os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDONLY | os.O_TRUNC):
            attempt(os.open, BAIT["secret"], flags)
            attempt(os.open, os.__file__, flags)
        attempt(os.rename, "mine", BAIT["folder"] + "/planted")
        attempt(os.listdir, "..")
        """,
        lambda outcome: only_refusals(outcome) and outcome.files == {"mine": b"x"},
        scratch=True,
    ),
    Attack(
        "change metadata",
        "chmod, chown, utime, truncate, xattr, link, rename, unlink, mkdir on a file it owns",
        """
        secret, planted = BAIT["secret"], BAIT["folder"] + "/planted"
        attempt(os.chmod, secret, 0o777)
        attempt(os.chown, secret, os.getuid(), os.getgid())
        attempt(os.utime, secret)
        attempt(os.truncate, secret, 0)
        attempt(os.setxattr, secret, "user.x", b"1")
        attempt(os.link, secret, planted)
        attempt(os.rename, secret, planted)
        attempt(os.unlink, secret)
        attempt(os.mkdir, planted)
        attempt(os.rmdir, BAIT["folder"])
        """,
        only_refusals,
    ),
    Attack(
        "traps in the scratch folder",
        "symbolic and hard links, pipes, sockets, devices and folders where the parent will read",
        """
        import stat
        attempt(os.symlink, BAIT["secret"], "link")
        attempt(os.link, os.__file__, "hard")
        attempt(os.mkfifo, "pipe")
        attempt(os.mknod, "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        attempt(os.mkdir, "folder")
        open("plain", "w").write("x")
        """,
        lambda outcome: only_refusals(outcome) and outcome.files == {"plain": b"x"},
        scratch=True,
    ),
    Attack(
        "file flood",
        "as many files as it can",
        """
        for number in range(10**7):
            open(f"file{number}", "w").write("x" * 1000)
        """,
        ends_by("output"),
        scratch=True,
    ),
    Attack(
        "big file",
        "write 1 GB, and seek far before writing",
        """
        def fill(start):
            with open("big", "wb", buffering=0) as file:
                file.seek(start)
                for _ in range(1000):
                    file.write(b"x" * 10**6)
        attempt(fill, 0)
        attempt(fill, 2**40)
        """,
        lambda outcome: only_refusals(outcome)
        and all(len(content) <= 65_536 for content in outcome.files.values()),
        scratch=True,
    ),
    # Network
    Attack(
        "open sockets",
        "inet, unix, netlink, raw and packet sockets, socket pairs, a listening port of this "
        "machine",
        """
        import socket
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, 17, 40):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                attempt(socket.socket, family, kind)
        attempt(socket.socketpair)
        attempt(socket.getaddrinfo, "localhost", 80)
        """,
        only_refusals,
    ),
    Attack(
        "connect",
        "reach a listening TCP and a listening unix socket",
        """
        import socket
        attempt(lambda: socket.create_connection(("127.0.0.1", BAIT["port"]), 1))
        attempt(lambda: socket.socket(socket.AF_UNIX).connect(BAIT["unix"]))
        """,
        only_refusals,
        breaks_nothing=True,
    ),
    # Processes
    Attack(
        "start processes",
        "fork, vfork, clone, exec, posix_spawn, subprocess, multiprocessing, pty, os.system",
        """
        import subprocess, multiprocessing, pty
        attempt(os.fork)
        attempt(os.forkpty)
        attempt(pty.fork)
        attempt(os.posix_spawn, "/bin/true", ["true"], {})
        attempt(os.execv, "/bin/true", ["true"])
        attempt(os.execve, sys.executable or "/bin/sh", ["x"], {})
        attempt(subprocess.run, ["/bin/true"])
        attempt(lambda: multiprocessing.get_context("fork").Process(target=print).start())
        attempt(lambda: raw(libc.vfork))
        attempt(lambda: raw(libc.clone, None, None, 0, None))
        if os.system("true") == 0:
            print("BREACH system")
        """,
        only_refusals,
    ),
    Attack(
        "start threads",
        "a flood of threads",
        """
        import threading, _thread
        for _ in range(100):
            attempt(threading.Thread(target=print).start)
            attempt(_thread.start_new_thread, print, ())
        """,
        only_refusals,
        breaks_nothing=True,
    ),
    Attack(
        "reach other processes",
        "signal, trace, read and limit the parent, the zygote, the group and everybody",
        """
        import resource
        iov = (ctypes.c_char * 64)()
        for process in (BAIT["parent"], os.getppid()):
            for signal in (0, 2, 9, 15, 19):
                attempt(os.kill, process, signal)
            attempt(lambda: raw(libc.ptrace, 16, process, 0, 0))
            attempt(lambda: raw(libc.process_vm_readv, process, iov, 1, iov, 1, 0))
            attempt(os.pidfd_open, process)
            attempt(os.setpriority, os.PRIO_PROCESS, process, 19)
            attempt(os.sched_setaffinity, process, {0})
            attempt(resource.prlimit, process, resource.RLIMIT_CPU, (0, 0))
        for process in (-1, 0, -os.getppid()):
            attempt(os.kill, process, 0)
        attempt(os.killpg, 0, 0)
        """,
        only_refusals,
    ),
    Attack(
        "signals through descriptors",
        "own a pipe in another process's name, so that the kernel signals it (F_SETOWN, F_SETSIG, "
        "O_ASYNC)",
        """
        import fcntl
        attempt(fcntl.fcntl, 1, 10, 9)
        attempt(fcntl.fcntl, 1, fcntl.F_SETOWN, BAIT["parent"])
        attempt(fcntl.fcntl, 1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | fcntl.FASYNC)
        attempt(fcntl.ioctl, 1, 0x5452, b"1234")
        """,
        only_refusals,
    ),
    Attack(
        "ignore signals",
        "ignore every signal, swallow every exception, cancel timers, never end",
        """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
                signal.pthread_sigmask(signal.SIG_BLOCK, [number])
            except (OSError, ValueError):
                pass
        attempt(signal.setitimer, signal.ITIMER_REAL, 0)
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass
        """,
        ends_by("cpu", "wall"),
    ),
    Attack(
        "stop itself",
        "SIGSTOP to itself, to block whoever waits",
        "os.kill(os.getpid(), 19)",
        ends_by("wall"),
    ),
    Attack(
        "outlive its end",
        "exit functions that never return",
        "import atexit\natexit.register(lambda: [None for _ in iter(int, 1)])\n",
        ends_by("cpu", "wall", "memory"),
    ),
    # Resources
    Attack(
        "memory bomb",
        "allocate until it dies: bytes, lists, anonymous maps",
        """
        import mmap
        attempt(lambda: mmap.mmap(-1, 2**34))
        attempt(lambda: bytearray(2**34))
        kept = []
        while True:
            kept.append(bytes(2**24))
        """,
        ends_by("memory", "wall"),
    ),
    Attack(
        "output flood",
        "print without end",
        "while True:\n    print('x' * 10**5)\n",
        ends_by("output"),
    ),
    Attack(
        "error flood",
        "write to stderr without end",
        "while True:\n    os.write(2, b'x' * 10**5)\n",
        ends_by("output"),
    ),
    Attack(
        "answer flood",
        "write to the answers' pipe without end",
        "while True:\n    os.write(3, b'x' * 10**5)\n",
        ends_by("output"),
        calls=_F,
    ),
    Attack(
        "huge return",
        "return 100 MB",
        "def f(x):\n    return 'x' * 10**8\n",
        either(raises("Unserializable"), ends_by("wall")),  # on a busy machine it takes too long
        calls=_F,
    ),
    Attack(
        "deep and endless returns",
        "nesting beyond recursion, a list that holds itself, a value that doubles at every level, "
        "a huge integer",
        """
        def f(kind):
            value = []
            if kind == 1:
                value.append(value)
            for _ in range(10**5 if kind == 0 else 60):
                value = [value, value] if kind == 2 else [value]
            return 1 << 10**7 if kind == 3 else value
        """,
        raises(*["Unserializable"] * 4),
        calls=tuple(Call("f", (kind,)) for kind in range(4)),
    ),
    Attack(
        "numbers that are not",
        "NaN and infinities as values and deep inside",
        "def f(x):\n    return [{'a': float(x)}]\n",
        raises(*["Unserializable"] * 3),
        calls=tuple(Call("f", (text,)) for text in ("nan", "inf", "-inf")),
    ),
    Attack(
        "descriptor exhaustion",
        "open files until nothing is left",
        """
        kept = []
        def flood():
            for number in range(10**5):
                kept.append(os.open(os.__file__, os.O_RDONLY))
        attempt(flood)
        print(len(kept))
        """,
        only_refusals,
    ),
    Attack(
        "raise limits",
        "setrlimit, nice, mlock, more processor time",
        """
        import resource
        for name in ("CPU", "AS", "NOFILE", "FSIZE", "NPROC", "CORE"):
            limit = getattr(resource, f"RLIMIT_{name}")
            attempt(resource.setrlimit, limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        attempt(os.nice, -5)
        attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
        attempt(lambda: raw(libc.mlockall, 3))
        """,
        only_refusals,
    ),
    # The kernel
    Attack(
        "undo the layers",
        "prctl, capset, seccomp, landlock, setuid, setsid, personality, unshare, chroot, mount",
        """
        for arguments in ((4, 1), (38, 0), (1, 0), (22, 0), (22, 2, 0), (24, 0), (8, 1), (36, 1)):
            attempt(lambda: raw(libc.prctl, *arguments, 0, 0, 0))
        attempt(os.setuid, os.getuid())
        attempt(os.setsid)
        attempt(lambda: raw(libc.personality, 0x0040000))
        attempt(lambda: raw(libc.unshare, 0x10000000))
        attempt(lambda: raw(libc.setns, 3, 0))
        attempt(os.chroot, "/")
        attempt(lambda: raw(libc.mount, b"none", b"/tmp", b"tmpfs", 0, None))
        attempt(lambda: raw(libc.capset, bytes(24), bytes(24)))
        """,
        only_refusals,
    ),
    Attack(
        "memory without a file",
        "memfd, System V and POSIX shared memory, semaphores, message queues",
        """
        from multiprocessing import shared_memory
        attempt(os.memfd_create, "x")
        attempt(lambda: shared_memory.SharedMemory("hpenv-planted", create=True, size=100))
        attempt(lambda: raw(libc.shmget, 0, 4096, 0o1600))
        attempt(lambda: raw(libc.semget, 0, 1, 0o1600))
        attempt(lambda: raw(libc.msgget, 0, 0o1600))
        """,
        only_refusals,
    ),
    Attack(
        "every other system call",
        "each number that is not on the list, through ctypes: io_uring, bpf, userfaultfd, keyctl, "
        "clone3...",
        """
        libc.syscall.restype = ctypes.c_long
        for number in range(600):
            # 335 and 336 are x86_64's uretprobe and uprobe, which the kernel lets through every
            # filter and answers with SIGILL unless a probe was set, which needs privileges.
            if number not in BAIT["allowed"] and number not in (335, 336):
                result, error = (
                    libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6),
                    ctypes.get_errno(),
                )
                if result != -1 or error not in (1, 38):
                    print("BREACH", number, result, error)
        print("refused")
        """,
        only_refusals,
    ),
    Attack(
        "the 32-bit entry",
        "machine code with int 0x80, where the same numbers mean other calls",
        """
        import mmap
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(bytes.fromhex("b814000000cd80c3"))
        attempt(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page))))
        """,
        ends_by("signal:31"),
        machine="x86_64",
    ),
    Attack(
        "the x32 entry",
        "system calls whose number has the x32 bit",
        "attempt(lambda: raw(libc.syscall, ctypes.c_long(0x40000000 + 39)))",
        ends_by("signal:31"),
        machine="x86_64",
    ),
    Attack(
        "crash the interpreter",
        "write through a null pointer",
        "ctypes.memset(0, 0, 1)",
        ends_by("signal:11"),
    ),
    # The verdict
    Attack(
        "equal to everything",
        "return objects whose comparison says yes: plain, and as subclasses of str, int, list, "
        "dict",
        """
        def f(x):
            yes = {
                "__eq__": lambda self, other: True, "__hash__": lambda self: 0,
                "__ne__": lambda self, other: False,
            }
            return type("Yes", (eval(x),), yes)()
        """,
        raises(*["Unserializable"] * 5),
        calls=tuple(Call("f", (base,)) for base in ("object", "str", "int", "list", "dict")),
    ),
    Attack(
        "exit early",
        "os._exit(0) while a call is answered",
        "def f(x):\n    os._exit(0)\n",
        lambda outcome: no_answer(outcome) and outcome.exit_code == 0,
        calls=_F,
    ),
    Attack(
        "answer more than was asked",
        "lines of its own in the answers' pipe, ahead of the real ones and at exit",
        """
        import atexit
        os.write(3, b'["value", "guess"]\\n')
        atexit.register(os.write, 3, b'["value", "guess"]\\n')
        """,
        no_answer,
        calls=_F,
    ),
    Attack(
        "broken answers",
        "invalid JSON, NaN, 1e999, duplicates, nesting of 100000, half a line, bytes that are no "
        "text",
        """
        lines = [
            b'["value", NaN]', b'["value", 1e999]', b'["value", ' + b'[' * 100000, b'{',
            b'\\xff\\xfe', b'[]',
        ]
        def f(x):
            os.write(3, lines[x] + b"\\n" if x < len(lines) else b'["value", 1')
            os._exit(0)
        for x in range(len(lines)):
            os.write(3, lines[x] + b"\\n")
        """,
        no_answer,
        calls=_F,
    ),
    Attack(
        "search for what is expected",
        "walk the frames, the garbage collector, the modules, the environment and the arguments "
        "for a secret",
        """
        import gc
        def f(x):
            frame, found = sys._getframe(), []
            while frame:
                found.append(repr(frame.f_locals) + repr(frame.f_globals.keys()))
                frame = frame.f_back
            found += [item for item in gc.get_objects() if type(item) is str]
            found += [repr(dict(os.environ)), repr(sys.argv), repr(sys.orig_argv)]
            if os.environ:
                print("BREACH environment")
            return "".join(found)[:500_000]
        """,
        lambda outcome: len(outcome.returned) == 1 and not outcome.returned[0].error,
        calls=_F,
    ),
    Attack(
        "change the runner",
        "rebind builtins, json, sys and the runner's own functions through its frames",
        """
        import builtins, json, importlib
        importlib.reload(json)
        json.dumps = json.JSONEncoder.encode = json.JSONEncoder.iterencode = (
            lambda *rest, **named: '["value", true]'
        )
        builtins.exec = builtins.eval = builtins.compile = builtins.type = lambda *rest: print
        frame = sys._getframe()
        while frame:
            for name in ("answer", "plain_size", "read_answers", "check"):
                if name in frame.f_globals:
                    frame.f_globals[name] = lambda *rest: None
            frame = frame.f_back
        print("refused")
        """,
        lambda outcome: all(result.value is True or result.error for result in outcome.returned),
        calls=_F,
    ),
    Attack(
        "take the originals back",
        "reload posix and os, to undo whatever was removed from them in Python",
        """
        import importlib, posix
        importlib.reload(posix)
        importlib.reload(os)
        attempt(posix.fork)
        attempt(posix.kill, posix.getppid(), 0)
        attempt(posix.open, BAIT["secret"], 0)
        """,
        only_refusals,
    ),
)  # fmt: skip

#: All attacks of this machine, by name.
ATTACKS = {attack.name: attack for attack in _ATTACKS if attack.machine in ("", platform.machine())}
