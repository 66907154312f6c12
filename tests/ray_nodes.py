"""Nodes of a Ray cluster on the loopback interface, started and stopped by the tests."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOOPBACK = "127.0.0.1"


class Node:
    """One `ray start` that waits, with what it has started."""

    def __init__(self, *arguments: str, folder: Path, cores: int) -> None:
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
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
        """End the node as `ray stop` would, but this one only."""
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
def cluster(folder: Path, *cores: int) -> Iterator[tuple[str, list[Node]]]:
    """Run a node for each number of cores, and give the address and the nodes."""
    port = free_port()
    address = f"{LOOPBACK}:{port}"
    # The path of Ray's sockets must be short.
    head = ("--head", "--port", str(port), "--include-dashboard", "false",
            "--ray-client-server-port", str(free_port()),
            "--temp-dir", f"/tmp/ray-{os.getpid()}-{port}")  # fmt: skip
    nodes = [Node(*head, folder=folder, cores=cores[0])]
    try:
        wait_for_nodes(address, 1)
        nodes += [Node("--address", address, folder=folder, cores=n) for n in cores[1:]]
        wait_for_nodes(address, len(cores))
        yield address, nodes
    finally:
        for node in reversed(nodes):
            if node.process.poll() is None:
                node.stop()


def wait_for_nodes(address: str, count: int) -> None:
    """Wait until so many nodes have joined, as a program of its own sees it."""
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
    subprocess.run([sys.executable, "-c", code, address, str(count)], check=True, timeout=300)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started, and that these have started."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    except OSError:
        pass
    return found


def command_of(pid: int) -> str:
    """Return what a process calls itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
