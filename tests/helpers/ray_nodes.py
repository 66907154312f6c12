"""Nodes of a Ray cluster, which tests run in a network with only the loopback interface.

Ray replaces 127.0.0.1 by the address by which others reach this machine, and listens on all of its
interfaces. Therefore the nodes, and the sweep that uses them, run in a separate network namespace.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOOPBACK = "127.0.0.1"
# Brings the loopback interface up, and keeps the namespace until its input ends.
HOLD = """
import fcntl, socket, struct, sys
IFF_UP, SIOCSIFFLAGS = 0x1, 0x8914
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
assert [name for _, name in socket.if_nameindex()] == ["lo"]
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def own_network() -> Iterator[list[str]]:
    """Return the prefix that runs a command in its own network; skip the test if unsupported."""
    import pytest

    ways = (([], []), (["--user", "--map-root-user"], ["--user", "--preserve-credentials"]))
    for make, enter in ways:
        try:
            holder = subprocess.Popen(
                ["unshare", *make, "--net", sys.executable, "-c", HOLD],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError:
            break
        with holder:
            assert holder.stdout
            assert holder.stdin
            if holder.stdout.readline() == b"held\n":
                yield ["nsenter", "--target", str(holder.pid), *enter, "--net"]
                holder.stdin.close()
                return
    pytest.skip("the system does not allow network namespaces")


class Node:
    """A running `ray start`, with the processes that it has started."""

    def __init__(self, *arguments: str, inside: list[str], folder: Path, cores: int) -> None:
        command = [
            *inside, sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
            "--node-ip-address", LOOPBACK, "--num-cpus", str(cores), "--num-gpus", "0",
            "--object-store-memory", str(100 << 20), "--disable-usage-stats", *arguments,
        ]  # fmt: skip
        self._log = (folder / f"ray-{'-'.join(arguments[:1]).strip('-')}.log").open("wb")
        environment = {**os.environ, "RAY_raylet_start_wait_time_s": "120"}
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def stop(self) -> None:
        """End this node, as `ray stop` ends all nodes."""
        started = descendants(self.process.pid)
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in started:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._log.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(inside: list[str], folder: Path, *cores: int) -> Iterator[tuple[str, list[Node]]]:
    """Run a node for each number of cores; yield the address and the nodes.

    Args:
        inside: the prefix of commands that run in their network, from `own_network`.
        folder: the directory for logs.
        cores: the number of cores of each node.
    """
    port = free_port()
    address = f"{LOOPBACK}:{port}"
    # The path of Ray's sockets must be short.
    head = ("--head", "--port", str(port), "--include-dashboard", "false",
            "--ray-client-server-port", str(free_port()),
            "--temp-dir", f"/tmp/ray-{os.getpid()}-{port}")  # fmt: skip
    nodes = [Node(*head, inside=inside, folder=folder, cores=cores[0])]
    try:
        wait_for_nodes(inside, address, 1)
        nodes += [
            Node("--address", address, inside=inside, folder=folder, cores=n) for n in cores[1:]
        ]
        wait_for_nodes(inside, address, len(cores))
        yield address, nodes
    finally:
        for node in reversed(nodes):
            if node.process.poll() is None:
                node.stop()


def wait_for_nodes(inside: list[str], address: str, count: int) -> None:
    """Wait until a separate program sees `count` nodes."""
    code = (
        "import ray, sys, time\n"
        "for _ in range(120):\n"
        "    try:\n"
        "        ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
        "        break\n"
        "    except ConnectionError:\n"
        "        time.sleep(1)\n"
        "for _ in range(120):\n"
        "    if sum(node['Alive'] for node in ray.nodes()) >= int(sys.argv[2]):\n"
        "        sys.exit()\n"
        "    time.sleep(1)\n"
        "sys.exit('the nodes did not come')\n"
    )
    command = [*inside, sys.executable, "-c", code, address, str(count)]
    subprocess.run(command, check=True, timeout=300)


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started."""
    return [process_id for child in children(pid) for process_id in (child, *descendants(child))]


def command_of(pid: int) -> str:
    """Return the command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
