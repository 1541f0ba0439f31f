"""Linux calls that lock a process in: Landlock, seccomp, capabilities, prctl.

An unprivileged process may make them. They are thin calls through `ctypes`. Every one raises
`OSError` if the kernel refuses, and the caller then ends the process. `zygote.py` has the order in
which they are applied. It loads this file by its path, so this file imports the standard library
alone. Constants are from linux/prctl.h, linux/landlock.h, linux/seccomp.h, linux/filter.h and
linux/capability.h.
"""

import ctypes
import functools
import os
import platform
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = (
    1,
    4,
    22,
    24,
    38,
)
SECCOMP_MODE_FILTER = 2
LINUX_CAPABILITY_VERSION_3 = 0x20080522

LANDLOCK_RULE_PATH_BENEATH = 1
LANDLOCK_CREATE_RULESET_VERSION = 1
READ_FILE, READ_DIR, WRITE_FILE, MAKE_REG, TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 8, 1 << 14
#: Number of file rights by Landlock version: 13 in the first (Linux 5.13). Then came refer,
#: truncate, nothing new, and ioctl on devices.
_NUM_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_NUM_FILE_RIGHTS_LATEST = 16

# Instructions of the classic packet filter, and its possible results.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_KEEP, _EQUAL_TO_KEPT = 0x01, 0x1D
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _NOT_IMPLEMENTED = 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16

# O_TMPFILE without O_DIRECTORY, whose value differs between architectures.
_TMPFILE = 0o20000000

Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, constant
_INSTRUCTION = struct.Struct("=HBBI")


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    """Calls a function of the C library, with integers widened to long.

    Raises:
        OSError: if the function returns -1.
    """
    function = _libc()[name]
    function.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    result = function(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return int(result)


def missing_support(architectures: Iterable[str]) -> list[str]:
    """Returns what this machine lacks to run the sandbox, one sentence each. Empty for nothing.

    Args:
        architectures: machines for which there is a table of system calls.
    """
    if sys.platform != "linux":
        return [
            f"it needs Linux, and this is {sys.platform}: use a Linux machine, container or "
            "virtual machine"
        ]

    missing = []
    if (
        platform.machine() not in set(architectures)
        or sys.byteorder != "little"
        or sys.maxsize < 2**32
    ):
        missing.append(
            f"no table of system calls for {platform.machine()}; "
            f"there is one for {sorted(architectures)}"
        )
    if landlock_version() < 1:
        missing.append(
            "Landlock (Linux 5.13 or later, CONFIG_SECURITY_LANDLOCK, and `landlock` in the `lsm=` "
            "kernel parameter; in a container, a seccomp profile that lets "
            "landlock_create_ruleset through)"
        )
    if not has_seccomp():
        missing.append("seccomp filters (CONFIG_SECCOMP_FILTER)")
    if not os.access(sys.executable or "", os.X_OK):  # None or empty where Python is embedded
        missing.append(
            f"a Python to start: sys.executable is {sys.executable!r}; set it to the path of one"
        )
    return missing


def landlock_version() -> int:
    """Returns the version of Landlock's interface. 0 if the kernel has none or forbids it."""
    try:
        return _call("syscall", 444, None, 0, LANDLOCK_CREATE_RULESET_VERSION)
    except OSError:
        return 0


def has_seccomp() -> bool:
    """Returns whether the kernel supports seccomp filters.

    A kernel with support answers a null pointer with "bad address".
    """
    try:
        _call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 0, 0, 0)
    except OSError as error:
        return error.errno == 14  # EFAULT
    return False


def forbid_new_privileges() -> None:
    """Keeps programs started from here from gaining rights (set-user-id, file capabilities).

    The other layers need this first.
    """
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def forbid_dumps() -> None:
    """Keeps other processes of the same user from tracing this one and reading its memory."""
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


def die_with_parent() -> None:
    """Asks for SIGKILL when the parent ends.

    Called after the capabilities are dropped, because dropping them would clear it.
    """
    _call("prctl", PR_SET_PDEATHSIG, 9, 0, 0, 0)


def drop_capabilities(numbers: Mapping[str, int]) -> None:
    """Drops every capability, the bounding set included. In a container the user is often root.

    Args:
        numbers: name -> number of the system calls of this machine.
    """
    try:
        for capability in range(64):
            _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
    except OSError as error:
        # EINVAL ends the list. EPERM: a plain user, who has nothing to drop.
        if error.errno not in (1, 22):
            raise
    header = struct.pack("=Ii", LINUX_CAPABILITY_VERSION_3, 0)
    _call("syscall", numbers["capset"], header, bytes(24))


def landlock_ruleset(
    numbers: Mapping[str, int], readable: Sequence[str], writable: Sequence[str] = ()
) -> int:
    """Makes a Landlock ruleset that allows these paths, no other file, and no TCP.

    Args:
        numbers: name -> number of the system calls of this machine.
        readable: files that may be read, and directories of which everything may be read. Symbolic
            links are left out.
        writable: directories in which regular files may also be made, written and truncated.

    Returns:
        A descriptor for `restrict_by`.
    """
    version = landlock_version()
    rights = (1 << _NUM_FILE_RIGHTS.get(version, _NUM_FILE_RIGHTS_LATEST)) - 1
    attributes = struct.pack("=Q", rights)
    if version >= 4:
        attributes += struct.pack("=Q", 0b11)  # bind and connect over TCP
    if version >= 6:
        attributes += struct.pack("=Q", 0b11)  # abstract unix sockets and signals stay inside

    ruleset = _call("syscall", numbers["landlock_create_ruleset"], attributes, len(attributes), 0)

    for paths, allowed in (
        (readable, READ_FILE),
        (writable, READ_FILE | WRITE_FILE | MAKE_REG | TRUNCATE),
    ):
        for path in paths:
            if os.path.islink(path):
                continue
            folder = os.path.isdir(path)
            beneath = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", (allowed | (READ_DIR if folder else 0)) & rights, beneath)
                _call(
                    "syscall",
                    numbers["landlock_add_rule"],
                    ruleset,
                    LANDLOCK_RULE_PATH_BENEATH,
                    rule,
                    0,
                )
            finally:
                os.close(beneath)

    return ruleset


def restrict_by(numbers: Mapping[str, int], ruleset: int) -> None:
    """Applies a Landlock ruleset to this process, for good."""
    _call("syscall", numbers["landlock_restrict_self"], ruleset, 0)


def seccomp_filter(
    machine: str,
    architecture: int,
    numbers: Mapping[str, int],
    allowed: Iterable[str],
    allowed_for: Mapping[str, tuple[int, Sequence[int]]],
    allowed_on_itself: Iterable[str],
    first_recent: str,
    x32_bit: int,
    may_write: bool,
) -> bytes:
    """Compiles an allow-list of system calls into a filter for `install_seccomp`.

    A file may be opened for reading only. With `may_write`, it may be opened in every way but "read
    and truncate", which old versions of Landlock take for reading.

    Args:
        machine: as `platform.machine()`.
        architecture: value of AUDIT_ARCH.
        numbers: name -> number of the system calls of this machine. A name of `allowed` that is
            missing does not exist there.
        allowed: calls allowed with any arguments.
        allowed_for: calls allowed for some values of one argument. Its low 32 bits are compared,
            which are all that these calls read.
        allowed_on_itself: calls allowed if the first argument is the number of the calling process.
        first_recent: calls from this one's number on are answered with ENOSYS instead of EPERM.
        x32_bit: on x86_64, numbers from here on kill the process.
        may_write: whether files may be opened for writing.

    Returns:
        The packed instructions. They expect the process's number in the register that _KEEP fills.
    """
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
    ]

    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, x32_bit), (_RETURN, 0, 0, _KILL)]
    for name in allowed:
        if name in numbers:
            program += [(_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _ALLOW)]

    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)
    checks: dict[str, list[Instruction]] = {}

    for name, (index, values) in allowed_for.items():
        checks[name] = [(_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * index)]
        for value in values:
            checks[name] += [(_EQUAL, 0, 1, value), allow]
        checks[name].append(refuse)
    for name in allowed_on_itself:
        checks[name] = [(_LOAD, 0, 0, _ARGUMENTS_OFFSET), (_EQUAL_TO_KEPT, 0, 1, 0), allow, refuse]

    checks["openat"] = [(_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * 2)]
    if may_write:
        checks["openat"] += [
            (_AND, 0, 0, os.O_ACCMODE | os.O_TRUNC),
            (_EQUAL, 0, 1, os.O_RDONLY | os.O_TRUNC),
        ]
    else:
        checks["openat"] += [(_ANY_BIT, 0, 1, os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | _TMPFILE)]
    checks["openat"] += [refuse, allow]

    for name, check in checks.items():
        program += [(_EQUAL, 0, len(check), numbers[name]), *check]
    program += [(_AT_LEAST, 0, 1, numbers[first_recent]), (_RETURN, 0, 0, _NOT_IMPLEMENTED), refuse]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def install_seccomp(instructions: bytes) -> None:
    """Filters the system calls of this process from now on, for good.

    Args:
        instructions: result of `seccomp_filter`. They are packed once, because they are the same
            for every process. The process's number differs, and stands in one instruction before
            them.
    """
    code = _INSTRUCTION.pack(_KEEP, 0, 0, os.getpid()) + instructions
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
    _call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)
