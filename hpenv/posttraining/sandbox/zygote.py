"""The zygote: a small Python with the common modules, which forks a locked-in child per program.

It is run by its path, never imported. It holds nothing secret: its environment is empty, tests and
expected values never reach it, and the program with its inputs goes from the parent straight to the
child through a descriptor. The child is locked in before it reads the program, in this order:
descriptors, session, resource limits, Landlock, death with the zygote, seccomp. At its start, the
zygote itself sets `no_new_privs`, and gives up the capabilities and the dump flag. A layer that
cannot be applied ends the child before it has read anything.

A message is one packet. `run <number> <scratch>` with the descriptors of job, stdout, stderr and
answers, and `kill <number>` come in. `ready` or `failed <why>`, then `ended <number> <wait status>
<cpu seconds>` go out.
"""

import contextlib
import fcntl
import gc
import importlib.util
import json
import os
import platform
import random
import resource
import select
import signal
import socket
import sys
import types
from typing import Any

#: Modules imported before the fork, so that a program finds them at once. It cannot import those
#: that need a shared library (zlib, hashlib, ctypes...), because it may not read /usr/lib.
#: `threading` is missing: its work after a fork costs every child a quarter of a millisecond, and a
#: program can import it.
PRELOADED = (
    "abc", "array", "ast", "base64", "binascii", "bisect", "bz2", "calendar", "cmath",
    "collections", "collections.abc", "copy", "ctypes", "dataclasses", "datetime", "decimal",
    "enum", "fractions", "functools", "hashlib", "heapq", "io", "itertools", "json", "lzma", "math",
    "numbers", "operator", "random", "re", "statistics", "string", "struct", "textwrap", "time",
    "traceback", "types", "typing", "unicodedata", "uuid", "zlib",
)  # fmt: skip

#: Folders beneath the standard library's folder that do not belong to it.
NOT_STDLIB = ("site-packages", "dist-packages")

NUM_DESCRIPTORS = 32
ANSWERS = 3  # descriptor in the child; 0 is /dev/null, 1 and 2 are its outputs


def load_sibling(name: str) -> types.ModuleType:
    """Loads a file of this folder by its path, without the package around it and without torch."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stdlib_entries() -> list[str]:
    """Returns the files and folders of the standard library: the import path without packages."""
    entries = []
    for path in sys.path:
        if os.path.isdir(path):
            entries += [
                os.path.join(path, name)
                for name in sorted(os.listdir(path))
                if name not in NOT_STDLIB
            ]
        elif os.path.isfile(path):
            entries.append(path)
    return entries


#: Name of a module that is looked for in every folder of the import path, and is in none.
NO_MODULE = "_no_such_module"


def preload() -> None:
    """Imports the common modules, and reads the folders of the import path once.

    A child may not list the standard library's own folder, since the same right would let it list
    `site-packages`. The import system lists a folder again only if it has changed.
    """
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # some builds lack lzma, bz2 or ctypes' neighbors
            __import__(name)
    importlib.util.find_spec(NO_MODULE)


def limit_resource(name: str, soft: int, hard: int) -> None:
    """Sets a resource limit of this process.

    Raises:
        ValueError: if the process was started with a lower limit.
    """
    kind = getattr(resource, f"RLIMIT_{name}")
    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY and hard > most:
        raise ValueError(
            f"RLIMIT_{name} must be at most {most}, the limit that this process was started with; "
            f"got {hard}"
        )
    resource.setrlimit(kind, (soft, hard))


def restore_signals() -> None:
    """Resets the signals that the parent ignores or blocks, as a daemon does.

    The programs would inherit them. SIGPIPE and SIGXFSZ stay ignored, as in Python.
    """
    for number in signal.valid_signals():
        if (
            number not in (signal.SIGPIPE, signal.SIGXFSZ)
            and signal.getsignal(number) is signal.SIG_IGN
        ):
            signal.signal(
                number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            )
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Zygote:
    """Serves jobs until its control socket closes.

    Args:
        control: packet socket to the parent.
        limits: the fields of `Limits`.
        scratch: folder for the programs that may write.
    """

    def __init__(self, control: socket.socket, limits: dict[str, Any], scratch: str) -> None:
        self.control = control
        self.limits = limits
        self.scratch = scratch
        self.kernel = load_sibling("kernel")
        self.syscalls = load_sibling("syscalls")
        self.program = load_sibling("program")
        self.machine = platform.machine()
        self.numbers: dict[str, int] = self.syscalls.NUMBERS[self.machine]

        preload()
        self.kernel.forbid_new_privileges()
        self.kernel.drop_capabilities(self.numbers)
        self.kernel.forbid_dumps()

        stdlib = stdlib_entries()
        self.rulesets = [
            self.kernel.landlock_ruleset(self.numbers, stdlib),
            self.kernel.landlock_ruleset(self.numbers, stdlib, [scratch]),
        ]
        self.filters = [self.seccomp_filter(writes) for writes in (False, True)]

        # Streams are made before the fork, so that they cost a child nothing. They find out now
        # what their descriptors can do, so these are a pipe, as in the child.
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.close(reading)
        os.close(writing)
        self.streams = {
            "stdin": open(0, encoding="utf-8", closefd=False),
            "stdout": open(1, "w", encoding="utf-8", buffering=1, closefd=False),
            "stderr": open(
                2, "w", encoding="utf-8", buffering=1, errors="backslashreplace", closefd=False
            ),
        }

    def seccomp_filter(self, writes: bool) -> bytes:
        """Returns the filter of a program that may write to the scratch folder, or may not."""
        return self.kernel.seccomp_filter(
            self.machine,
            self.syscalls.AUDIT_ARCHITECTURES[self.machine],
            self.numbers,
            self.syscalls.ALLOWED,
            self.syscalls.ALLOWED_FOR,
            self.syscalls.ALLOWED_ON_ITSELF,
            self.syscalls.FIRST_RECENT,
            self.syscalls.X32_BIT,
            writes,
        )

    def serve(self) -> None:
        """Forks a child per job, until the parent closes the socket or is gone."""
        gc.collect()
        gc.freeze()  # keeps children's collections off these objects and their shared pages

        while True:
            packet, descriptors, _, _ = socket.recv_fds(self.control, 256, 4)
            if not packet:
                return
            words = packet.split()
            if words[0] == b"kill":  # of a job that has ended meanwhile
                continue
            number, writes = int(words[1]), words[2] == b"1"

            child = os.fork()
            if child == 0:
                self.become_child(descriptors, writes)
            for descriptor in descriptors:
                os.close(descriptor)
            status, cpu_seconds = self.wait_for(child, number)
            self.control.send(f"ended {number} {status} {cpu_seconds}".encode())

    def wait_for(self, child: int, number: int) -> tuple[int, float]:
        """Waits for a child, and kills it on request or when the parent is gone.

        Returns:
            The wait status and the processor time [s].
        """
        handle = os.pidfd_open(child)
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            poll.register(self.control, select.POLLIN)
            while handle not in (ready := dict(poll.poll())):
                if self.control.fileno() in ready:
                    packet = self.control.recv(256)
                    if not packet or packet == f"kill {number}".encode():
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                    if not packet:
                        poll.unregister(self.control)

            # The child's number cannot become another's before `wait4`. Seccomp already forbids the
            # child to start processes. Killing its group is a second guard.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
        finally:
            os.close(handle)
        return status, usage.ru_utime + usage.ru_stime

    def become_child(self, descriptors: list[int], writes: bool) -> None:
        """Locks this process in, reads the program and runs it. Never returns."""
        zygote = os.getppid()
        answers = descriptors[3]
        try:
            job = self.arrange_descriptors(descriptors)
            answers = ANSWERS
            self.lock_in(zygote, writes)
        except BaseException as error:
            failure = json.dumps(["failed", f"{type(error).__name__}: {error}"])
            os.write(answers, failure.encode() + b"\n")
            os._exit(70)

        def answer(line: str) -> None:
            rest = memoryview(line.encode() + b"\n")
            while rest:
                rest = rest[os.write(ANSWERS, rest) :]

        code = 1
        try:
            answer('["ready"]')
            with os.fdopen(job, "rb") as file:
                content = json.loads(file.read())
            code = self.program.run(content, answer, self.limits["returned_bytes"])
        finally:
            self.program.finish(code)

    def arrange_descriptors(self, descriptors: list[int]) -> int:
        """Puts outputs and answers in place, and closes all others but the job's.

        Returns:
            The job's descriptor.
        """
        start = ANSWERS + 1  # above the descriptors that are put in place
        job, *outputs = [
            fcntl.fcntl(descriptor, fcntl.F_DUPFD, start) for descriptor in descriptors
        ]
        self.rulesets = [fcntl.fcntl(ruleset, fcntl.F_DUPFD, start) for ruleset in self.rulesets]
        for place, descriptor in enumerate(outputs, start=1):
            os.dup2(descriptor, place)

        keep = sorted([job, *self.rulesets])
        for descriptor in keep:
            os.closerange(start, descriptor)
            start = descriptor + 1
        os.closerange(start, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        return job

    def lock_in(self, zygote: int, writes: bool) -> None:
        """Applies every layer that the zygote has not applied to itself."""
        os.setsid()
        os.environ.clear()
        os.chdir(self.scratch if writes else "/")
        os.umask(0o077)
        sys.argv = [""]
        vars(sys).update(self.streams)
        random.seed(0)  # a program that draws numbers gets the same verdict every time

        for name, limit in (
            ("AS", self.limits["memory_bytes"]),
            ("DATA", self.limits["memory_bytes"]),
            ("FSIZE", self.limits["file_bytes"] if writes else 0),
            ("NOFILE", NUM_DESCRIPTORS),
            ("CORE", 0),
            ("NPROC", 0),
            ("MEMLOCK", 0),
            ("MSGQUEUE", 0),
        ):
            limit_resource(name, limit, limit)
        # SIGXCPU at the limit, which a program may ignore. SIGKILL a second later, which it may
        # not.
        limit_resource("CPU", self.limits["cpu_seconds"], self.limits["cpu_seconds"] + 1)

        self.kernel.restrict_by(self.numbers, self.rulesets[writes])
        for ruleset in self.rulesets:
            os.close(ruleset)
        self.kernel.die_with_parent()
        if os.getppid() != zygote:
            raise RuntimeError("the zygote ended during the fork")
        self.kernel.install_seccomp(self.filters[writes])


def main() -> None:
    """Reads the control socket's descriptor, the limits and the scratch folder, and serves."""
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        restore_signals()
        zygote = Zygote(control, json.loads(sys.argv[2]), sys.argv[3])
    except BaseException as error:
        control.send(f"failed {type(error).__name__}: {error}".encode()[:4096])
        raise

    control.send(b"ready")
    with contextlib.suppress(ConnectionError):
        zygote.serve()
    # The parent does this too, unless it was killed.
    with contextlib.suppress(OSError):
        for name in os.listdir(sys.argv[3]):
            os.unlink(os.path.join(sys.argv[3], name))
        os.rmdir(sys.argv[3])


if __name__ == "__main__":
    main()
