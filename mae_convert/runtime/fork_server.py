"""Child processes that are forked from a fork server: a process that has imported a framework.

Importing PyTorch takes a second of processor time, and a sweep starts two child processes for each
verification. A forked child runs the script that a newly started process would run, with the same
arguments, environment, current directory and standard streams. Before the fork, the server runs
nothing except the import.

For each request the server forks a supervisor, which forks the child. A supervisor kills its child
when the connection of the request is closed, and reports the child's exit status.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

READY = b"r"
ANSWER_SECONDS = 60.0  # after this time without an answer, a request has failed


class ForkServer:
    """A connection to a running fork server, which starts child processes on request.

    The object can be pickled for a process that is started by ``multiprocessing``.

    Args:
        requests: the socket to the server.
        environment: the environment variables with which the server was started.
    """

    def __init__(self, requests: socket.socket, environment: Mapping[str, str]) -> None:
        self.requests = requests
        self._environment = environment
        self._ready_until = time.monotonic() + ANSWER_SECONDS
        self._children: list[ForkedProcess] = []

    def is_ready(self) -> bool:
        """Return whether the server has imported its framework.

        If the server was just started, the method first waits for the end of the import, but not
        longer than `ANSWER_SECONDS` after the start.
        """
        left = max(0.0, self._ready_until - time.monotonic())
        with suppress(OSError):
            if select.select([self.requests], [], [], left)[0]:
                return self.requests.recv(1, socket.MSG_PEEK) == READY
        return False

    def fork(
        self, command: Sequence[str], environment: Mapping[str, str], **streams: Any
    ) -> "ForkedProcess | None":
        """Run ``python SCRIPT ARGUMENTS`` in a forked process.

        Args:
            command: the Python interpreter, the script and its arguments.
            environment: the environment variables that the process must have.
            streams: ``stdin``, ``stdout`` and ``stderr``, as for `ForkedProcess`.

        Returns:
            The process; None if the server has ended, or if the interpreter or the environment
            variables differ from the server's, so that a new process is required.
        """
        if command[0] != sys.executable or environment != self._environment:
            return None
        try:
            child = ForkedProcess(self.requests, command[1:], **streams)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            return None
        self._children.append(child)
        return child

    def running(self) -> list[int]:
        """Return the ids of the processes that this process requested and that still run."""
        return [child.pid for child in self._children if child.returncode is None]


@contextmanager
def fork_server(
    environment: Mapping[str, str], arguments: Sequence[str | Path]
) -> Iterator[ForkServer]:
    """Start a fork server, which ends with the context.

    Args:
        environment: the environment variables of the server.
        arguments: the script that imports a framework and calls `serve`, and its arguments.
    """
    ours, child_end = socket.socketpair()
    with ours:
        with child_end:
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)], stdin=child_end.fileno(),
                env=dict(environment),
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            yield ForkServer(ours, environment)
        finally:
            process.kill()
            process.wait()


class ForkedProcess:
    """A forked process, with the methods of ``subprocess.Popen`` that are used for children.

    Args:
        requests: the socket to the server.
        arguments: the script and its arguments.
        stdin: the standard input, as for ``subprocess.Popen``.
        stdout: the standard output, as for ``subprocess.Popen``.
        stderr: the standard error, as for ``subprocess.Popen``.
        environment: the environment variables of the process; None for the server's variables.

    Raises:
        OSError, EOFError, subprocess.TimeoutExpired: the server has ended, or cannot fork.
    """

    def __init__(
        self,
        requests: socket.socket,
        arguments: Sequence[str],
        *,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.args = arguments
        self.returncode: int | Any = None  # None while it runs, as in ``subprocess``
        request = {
            "arguments": list(arguments),
            "environment": None if environment is None else dict(environment),
            "directory": str(Path.cwd()),
        }
        with ExitStack() as opened, ExitStack() as child_ends:
            self.stdin, reads = _stream(stdin, opened, child_ends, "w")
            self.stdout, writes = _stream(stdout, opened, child_ends, "r")
            self.stderr, complains = _stream(stderr, opened, child_ends, "r")
            self._connection, other = socket.socketpair()
            self._answers = self._connection.makefile()
            opened.callback(self._disconnect)
            with other:
                # Several processes send to this socket; only messages of a single byte stay whole.
                streams = [reads, writes, complains, other.fileno()]
                socket.send_fds(requests, [READY], streams)
            self._connection.sendall(f"{json.dumps(request)}\n".encode())
            self._require_input(self._answers, ANSWER_SECONDS)
            if not (answer := self._answers.readline()):
                raise EOFError
            self.pid = int(answer)
            opened.pop_all()

    def _disconnect(self) -> None:
        self._answers.close()
        self._connection.close()

    def poll(self) -> int | None:
        """Return the exit status, or None if the process still runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end and return its exit status.

        Args:
            timeout: the maximum time to wait, in seconds; None for no limit.

        Raises:
            subprocess.TimeoutExpired: the process still runs after this time.
        """
        if self.returncode is None:
            self._require_input(self._answers, timeout)
            # Without an answer, the supervisor was killed; the child is reported as killed too.
            self.returncode = int(self._answers.readline() or -signal.SIGKILL)
            self._disconnect()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Read standard error to its end, wait for the process, and return (None, the text).

        Args:
            timeout: the maximum time to wait, in seconds; None for no limit.

        Raises:
            subprocess.TimeoutExpired: the process still runs after this time.
        """
        end = None if timeout is None else time.monotonic() + timeout
        read = bytearray()
        while True:
            self._require_input(self.stderr, None if end is None else end - time.monotonic())
            if not (more := os.read(self.stderr.fileno(), 1 << 16)):
                break
            read += more
        self.wait(None if end is None else end - time.monotonic())
        return None, read.decode(errors="replace")

    def kill(self) -> None:
        """End the process if it is still running."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def _require_input(self, stream: IO[str], timeout: float | None) -> None:
        """Wait until a stream has something to read, or has ended.

        Args:
            stream: the stream.
            timeout: seconds; None waits without a limit.

        Raises:
            subprocess.TimeoutExpired: there was nothing to read within that time.
        """
        if not select.select([stream], [], [], timeout if timeout is None else max(timeout, 0))[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)


def _stream(request: Any, opened: ExitStack, child_ends: ExitStack, mode: str) -> tuple[Any, int]:
    """Return the parent's end of a stream, or None, and the file descriptor of the child's end.

    Args:
        request: the stream, as for ``subprocess.Popen``: PIPE, DEVNULL, or a file or its file
            descriptor. The parent's end is None unless this is PIPE.
        opened: closes the parent's end if the process cannot be started.
        child_ends: closes the child's end in this process.
        mode: the mode of the parent's end: "r" to read from the child, "w" to write to it.
    """
    if request == subprocess.PIPE:
        reading, writing = os.pipe()
        ours, other = (writing, reading) if mode == "w" else (reading, writing)
        child_ends.callback(os.close, other)
        return opened.enter_context(open(ours, mode)), other  # noqa: PTH123
    if request == subprocess.DEVNULL:
        null = os.open(os.devnull, os.O_RDWR)
        child_ends.callback(os.close, null)
        return None, null
    return None, request if isinstance(request, int) else request.fileno()


# ------------------------------------------------------------------------------- in the server


def serve() -> None:
    """Fork a process for each request from standard input, until standard input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the processes that send requests
    gc.freeze()
    requests = socket.socket(fileno=0)
    requests.sendall(READY)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 4)
        with suppress(ChildProcessError):  # there is no supervisor whose end must be awaited
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not message:
            return
        with suppress(OSError):  # without an answer, the requester starts a new process
            if os.fork() == 0:
                requests.close()
                *streams, connection = descriptors
                _supervise(socket.socket(fileno=connection), streams)
        for descriptor in descriptors:
            os.close(descriptor)


def _supervise(connection: socket.socket, streams: Sequence[int]) -> None:
    """Run the request of a connection in a child process.

    The child's process id and then its exit status are sent to the connection.

    Args:
        connection: the connection from which the request is read.
        streams: file descriptors for standard input, output and error of the child.
    """
    try:
        with connection.makefile() as lines:
            request = json.loads(lines.readline())
        child = os.fork()
        if child == 0:
            connection.close()
            _become(request, streams)
        for stream in streams:
            os.close(stream)
        threading.Thread(target=_kill_when_closed, args=(connection, child), daemon=True).start()
        connection.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    finally:
        os._exit(0)


def _kill_when_closed(connection: socket.socket, child: int) -> None:
    with suppress(OSError):
        connection.recv(1)
    os.kill(child, signal.SIGKILL)


def _become(request: Mapping[str, Any], streams: Sequence[int]) -> None:
    """Run the requested script as ``python SCRIPT ARGUMENTS`` would, and end this process.

    Args:
        request: the arguments, the environment variables and the current directory.
        streams: the file descriptors of standard input, output and error.
    """
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    if request["environment"] is not None:
        os.environ.clear()
        os.environ.update(request["environment"])
    sys.argv[:] = request["arguments"]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    try:
        os.chdir(request["directory"])
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
