"""One zygote and the program that it runs at the moment, seen from the parent.

The parent holds the reading ends of the program's pipes. It decides when a program exceeds its
time, its output or its files. It never waits for the program, only for the zygote, and it opens
files of the program as if they were traps.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from hpenv.posttraining.sandbox.answers import read_answers
from hpenv.posttraining.sandbox.jobs import Job, Limits, Outcome, SandboxUnavailable

ZYGOTE = Path(__file__).with_name("zygote.py")

#: Interval between looks at the scratch folder while a program may write to it [s].
SCRATCH_PERIOD = 0.01

#: A zygote that takes longer than this to start, or to end a program, counts as broken [s].
PATIENCE = 30.0


def _move_above_streams(descriptor: int) -> int:
    """Moves a descriptor out of 0 to 2, where a daemon that has closed its streams gets it.

    The zygote has its streams there, and other code of this process may write to its streams there.
    """
    if descriptor > 2:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


class Run:
    """A running program: its pipes, its deadline, its output so far.

    Args:
        job: the program and its calls.
        limits: limits of the program.
        scratch: the worker's folder.
        number: number of the run, different from the worker's other runs.
    """

    def __init__(self, job: Job, limits: Limits, scratch: Path, number: int) -> None:
        self.job = job
        self.limits = limits
        self.scratch = scratch
        self.number = number
        self.started = time.monotonic()
        self.deadline = self.started + limits.wall_seconds

        self.stop_reason = ""  # why the parent ends it, empty if it does not
        self.kill_sent = False  # whether the zygote was asked to end it
        self.status: int | None = None
        self.cpu_seconds = 0.0

        self.pipes: list[int] = []  # reading ends of stdout, stderr, answers
        self.content = [bytearray(), bytearray(), bytearray()]
        self.caps = (
            limits.output_bytes,
            limits.output_bytes,
            limits.returned_bytes + 256 * (len(job.calls) + 3),
        )
        self.open: set[int] = set()

    def start(self, control: socket.socket) -> None:
        """Hands the program to the zygote."""
        job = self.job
        content = {"setup": job.setup, "source": job.source, "after": job.after}
        calls = [[call.function, call.arguments] for call in job.calls]
        description = json.dumps(content | {"calls": calls}, allow_nan=False)

        with contextlib.ExitStack() as stack:
            descriptors = [_move_above_streams(os.memfd_create("job"))]
            stack.callback(os.close, descriptors[0])
            os.write(descriptors[0], description.encode())
            os.lseek(descriptors[0], 0, os.SEEK_SET)
            for _ in self.content:
                reading, writing = map(_move_above_streams, os.pipe())
                stack.callback(os.close, writing)
                os.set_blocking(reading, False)
                descriptors.append(writing)
                self.pipes.append(reading)
                self.open.add(reading)
            socket.send_fds(
                control, [f"run {self.number} {int(job.scratch)}".encode()], descriptors
            )

    def read(self, pipe: int) -> None:
        """Reads what a pipe holds, up to its cap, and closes it at its end."""
        place = self.pipes.index(pipe)
        content, cap = self.content[place], self.caps[place]

        try:
            while piece := os.read(pipe, 65_536):
                content += piece
                if len(content) > cap:
                    del content[cap:]
                    self.stop_reason = "output"
                    break
        except BlockingIOError:
            return
        self.close_pipe(pipe)

    def close_pipe(self, pipe: int) -> None:
        """Closes one reading end."""
        self.open.discard(pipe)
        os.close(pipe)

    def check_limits(self, now: float) -> None:
        """Sets `stop_reason` if the program has exceeded its time or its number of files."""
        if now >= self.deadline:
            self.stop_reason = self.stop_reason or "wall"
        elif self.job.scratch and len(os.listdir(self.scratch)) > self.limits.num_files:
            self.stop_reason = self.stop_reason or "output"

    def outcome(self) -> Outcome:
        """Returns the outcome, once the program or its zygote has ended."""
        for pipe in list(self.open):
            self.read(pipe)
            if pipe in self.open:
                self.close_pipe(pipe)
        files = self.files() if self.job.scratch else {}
        answers = read_answers(
            bytes(self.content[2]), len(self.job.calls), self.limits.returned_bytes
        )

        if answers.failure:
            raise SandboxUnavailable(
                f"the program could not be locked in, and was not run: {answers.failure}"
            )

        killed_by = self.stop_reason or self.end_reason(answers.uncaught)
        exited = self.status is not None and os.WIFEXITED(self.status) and not self.stop_reason

        return Outcome(
            stdout=self.content[0].decode("utf-8", "replace"),
            stderr=self.content[1].decode("utf-8", "replace"),
            exit_code=os.WEXITSTATUS(self.status) if exited and self.status is not None else None,
            killed_by=killed_by,
            # How many answers precede a flood is a matter of timing, and an outcome is not.
            returned=() if killed_by == "output" else answers.returned,
            compiled=answers.compiled,
            seconds=time.monotonic() - self.started,
            files=files,
        )

    @property
    def has_begun(self) -> bool:
        """True if the child may have read the program. It writes an answer before it does."""
        return bool(self.content[2])

    def end_reason(self, uncaught: str) -> str:
        """Returns what ended a program that the parent did not stop."""
        if self.status is None:
            return "zygote"

        if os.WIFSIGNALED(self.status):
            number = os.WTERMSIG(self.status)
            no_time_left = number == signal.SIGKILL and self.cpu_seconds >= self.limits.cpu_seconds
            return "cpu" if number == signal.SIGXCPU or no_time_left else f"signal:{number}"
        return "memory" if uncaught == "MemoryError" else ""

    def files(self) -> dict[str, bytes]:
        """Reads the regular files of the scratch folder. Follows no link and waits for no pipe."""
        found = {}
        names = sorted(os.listdir(self.scratch))
        if len(names) > self.limits.num_files:
            self.stop_reason = self.stop_reason or "output"

        for name in names[: self.limits.num_files]:
            try:
                descriptor = os.open(
                    self.scratch / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                )
            except OSError:  # a link, or made unreadable
                continue
            with open(descriptor, "rb") as file:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    found[name] = file.read(self.limits.file_bytes)

        return found


class Worker:
    """A zygote with its scratch folder. It runs one program at a time.

    Args:
        limits: limits of every program.

    Raises:
        SandboxUnavailable: if the zygote does not start.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.num_runs = 0
        self.scratch = Path(tempfile.mkdtemp(prefix="hpenv-sandbox-"))

        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, theirs = (
            socket.socket(fileno=_move_above_streams(end.detach())) for end in pair
        )
        with theirs:
            # -I stands for -E -s -P. -E is left out so that the only variable can fix the order of
            # sets, and with it the verdict of a program that prints one.
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-s", "-P", "-S", "-B", "-X", "utf8", str(ZYGOTE)),
                    *(str(theirs.fileno()), json.dumps(asdict(limits)), str(self.scratch)),
                ],
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Waits for the zygote's first message.

        Raises:
            SandboxUnavailable: if the zygote did not start, with what it says went wrong.
        """
        assert self.process.stderr is not None
        self.control.settimeout(PATIENCE)
        try:
            word = self.control.recv(4096)
        except (TimeoutError, ConnectionError) as error:
            word = f"failed {error}".encode()

        if word != b"ready":
            why = word.decode("utf-8", "replace")
            if not word:  # the zygote is about to end
                with contextlib.suppress(subprocess.TimeoutExpired):
                    why = f"it ended with exit code {self.process.wait(1.0)}:"
            self.process.kill()
            errors = self.process.stderr.read().decode("utf-8", "replace")
            last_line = errors.strip().rpartition("\n")[2]
            self.stop()
            raise SandboxUnavailable(
                f"the sandbox's zygote did not start: {why} {last_line or 'nothing on stderr'}"
            )
        self.process.stderr.close()
        self.control.setblocking(False)

    def submit(self, job: Job) -> Run:
        """Starts a program. Raises `ConnectionError` if the zygote is gone."""
        self.num_runs += 1
        run = Run(job, self.limits, self.scratch, self.num_runs)
        try:
            run.start(self.control)
        except BaseException:
            for pipe in list(run.open):
                run.close_pipe(pipe)
            raise
        return run

    def listen(self, run: Run) -> bool:
        """Reads the zygote's message. Returns whether the run is over, or the zygote gone."""
        try:
            packet = self.control.recv(256)
        except BlockingIOError:
            return False
        except ConnectionError:
            packet = b""
        if packet:
            _, _, status, cpu_seconds = packet.split()
            run.status, run.cpu_seconds = int(status), float(cpu_seconds)
        return True

    def check(self, run: Run, now: float) -> bool:
        """Has a program killed that exceeds a limit. False if the zygote does not answer either."""
        run.check_limits(now)
        if run.stop_reason and not run.kill_sent:
            run.kill_sent = True
            with contextlib.suppress(ConnectionError):  # gone: `listen` will notice
                self.control.send(f"kill {run.number}".encode())
        return not run.kill_sent or now < run.deadline + PATIENCE

    def run_alone(self, job: Job) -> Outcome:
        """Runs a trusted program that prints little, and returns its outcome."""
        run = self.submit(job)
        while select.select([self.control], [], [], PATIENCE)[0] and not self.listen(run):
            pass
        return run.outcome()

    def empty_scratch(self) -> None:
        """Removes what a program left in the scratch folder.

        The folder itself stays, because the zygote's rules name it.
        """
        for entry in os.scandir(self.scratch):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)

    def stop(self) -> None:
        """Ends the zygote and the program that it runs, and removes the scratch folder."""
        self.control.close()
        if self.process.stderr is not None:
            self.process.stderr.close()

        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its child goes with it
            self.process.wait()

        shutil.rmtree(self.scratch, ignore_errors=True)
