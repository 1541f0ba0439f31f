"""Bait for the attacks: a secret file and two listening sockets, with a check of their state."""

import os
import platform
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpenv.posttraining.sandbox import syscalls


@dataclass(frozen=True)
class Bait:
    """Bait for one attack."""

    folder: Path  # outside the sandbox, writable by this user
    token: str  # content of `folder/secret.txt`, also in this process's memory
    port: int  # of a TCP socket that listens
    unix_socket: Path
    listeners: tuple[socket.socket, ...]

    def clues(self) -> dict[str, Any]:
        """Returns what an attack may know: everything but the token."""
        home = Path(os.path.expanduser("~"))
        files = sorted(home.iterdir()) if os.access(home, os.R_OK | os.X_OK) else []
        readable = (path for path in files if path.is_file() and os.access(path, os.R_OK))

        machine = platform.machine()
        allowed = (*syscalls.ALLOWED, *syscalls.ALLOWED_FOR, *syscalls.ALLOWED_ON_ITSELF, "openat")
        numbers = syscalls.NUMBERS[machine]

        return {
            "secret": str(self.folder / "secret.txt"),
            "folder": str(self.folder),
            "home": str(home),
            "home_file": str(next(readable, self.folder / "secret.txt")),
            "source": __file__,
            "parent": os.getpid(),
            "port": self.port,
            "unix": str(self.unix_socket),
            "allowed": [numbers[name] for name in allowed if name in numbers],
        }

    def is_intact(self) -> bool:
        """Returns whether the folder is unchanged and nobody has connected."""
        secret = self.folder / "secret.txt"
        if (
            sorted(os.listdir(self.folder)) != ["secret.txt", "socket"]
            or secret.read_text() != self.token
        ):
            return False
        if secret.stat().st_mode & 0o777 != 0o600 or secret.stat().st_mtime != 1e9:
            return False

        for listener in self.listeners:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                continue
            return False
        return True


@contextmanager
def lay_bait() -> Iterator[Bait]:
    """Creates a folder with a secret and two listening sockets, and removes them in the end."""
    folder = Path(tempfile.mkdtemp(prefix="hpenv-bait-"))
    tcp, unix = socket.socket(), socket.socket(socket.AF_UNIX)
    try:
        token = secrets.token_hex(16)
        secret = folder / "secret.txt"
        secret.write_text(token)
        secret.chmod(0o600)
        os.utime(secret, (1e9, 1e9))
        tcp.bind(("127.0.0.1", 0))
        unix.bind(str(folder / "socket"))

        for listener in (tcp, unix):
            listener.listen()
            listener.setblocking(False)

        yield Bait(folder, token, tcp.getsockname()[1], folder / "socket", (tcp, unix))
    finally:
        tcp.close()
        unix.close()
        shutil.rmtree(folder)
