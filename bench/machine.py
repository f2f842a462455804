"""Memory and processor time of a process and its children, memory cgroups, and private copies of binaries.
Linux only; None stands for what this machine cannot measure."""

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

MB = 1 << 20

# The proxy runs on the last processor, clients and upstream on the others.
CPUS = sorted(os.sched_getaffinity(0))
PROXY_CPUS = CPUS[-1:]
TRAFFIC_CPUS = CPUS[:-1] or CPUS


def read(path: str | Path) -> str:
    """The text of a file, or "" if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def prepare() -> None:
    """Allows many connections, and makes SIGTERM clean up like an error."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


_ports_taken: set[int] = set()


def free_port() -> int:
    """A free port below those of outgoing connections."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = 20_000 + int(probe.getsockname()[1]) % 10_000
        if port in _ports_taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _ports_taken.add(port)
        return port


class Box:
    """A memory cgroup, version 1 or 2, with or without a limit, for a program and its children."""

    made = 0

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.version = version

    @staticmethod
    def make(limit: int | None) -> "Box | None":
        """None: it cannot be made on this machine (not root, or no memory controller)."""
        Box.made += 1
        name = f"lean-bench-{os.getpid()}-{Box.made}"
        for line in read("/proc/mounts").splitlines():
            _, mount, kind, options = line.split()[:4]
            first = kind == "cgroup" and "memory" in options.split(",")
            if not first and not (kind == "cgroup2" and "memory" in read(f"{mount}/cgroup.controllers").split()):
                continue
            box = Box(Path(mount, name), 1 if first else 2)
            try:
                if not first:
                    Path(mount, "cgroup.subtree_control").write_text("+memory")
                box.folder.mkdir()
            except OSError:
                continue
            box.limit(limit)
            return box
        return None

    def limit(self, limit: int | None) -> None:
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if self.version == 1 else ("memory.max",)
        for name in names if limit is not None else ():
            try:
                Path(self.folder, name).write_text(str(limit))
            except OSError:
                pass  # memsw: only where swap is counted
        if self.version == 2 and limit is not None:
            try:
                Path(self.folder, "memory.swap.max").write_text("0")
            except OSError:
                pass
        if self.version == 1:
            try:  # socket buffers are counted from here on
                Path(self.folder, "memory.kmem.tcp.limit_in_bytes").write_text(str(1 << 40))
            except OSError:
                pass

    def enter(self) -> None:
        """Called in the child process before it executes the proxy."""
        Path(self.folder, "cgroup.procs").write_text("0")

    def _number(self, name: str) -> int:
        text = read(self.folder / name).strip()
        return int(text) if text.isdigit() else 0

    def sockets(self) -> int:
        """Bytes in socket buffers now."""
        if self.version == 1:
            return self._number("memory.kmem.tcp.usage_in_bytes")
        return _field(read(self.folder / "memory.stat"), "sock")

    def charged(self) -> int:
        """Bytes of memory now, socket buffers included."""
        if self.version == 1:
            return self._number("memory.usage_in_bytes") + self.sockets()
        return self._number("memory.current")

    def peak(self) -> int:
        """The maximum that was charged; on version 1 without socket buffers, which are counted separately."""
        return self._number("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")

    def peak_apart(self) -> int:
        """The maximum of socket buffers where the limit does not include them, that is on version 1."""
        return self._number("memory.kmem.tcp.max_usage_in_bytes")

    def kills(self) -> int:
        return _field(read(self.folder / ("memory.oom_control" if self.version == 1 else "memory.events")), "oom_kill")

    def remove(self) -> None:
        for _ in range(100):
            try:
                self.folder.rmdir()
                return
            except OSError:
                time.sleep(0.02)


def _field(text: str, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", text, re.M)
    return int(found.group(1)) if found else 0


class BinaryCopies:
    """Private copies of binaries and their libraries, whose pages are shared with no other program, as in a container.

    Where permitted, the copies are on a loop device with the usual read-ahead of 128 kB: a host's own may be megabytes, and
    would change how a program behaves whose pages are evicted in a small cgroup."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "binaries"
        self.folder.mkdir()
        self.device = ""
        image = work / "binaries.img"
        try:
            with image.open("wb") as file:
                file.truncate(400 * MB)
            _quietly("mkfs.ext4", "-q", "-O", "^has_journal", str(image))
            self.device = _quietly("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
            Path(f"/sys/block/{Path(self.device).name}/queue/read_ahead_kb").write_text("128")
            _quietly("mount", self.device, str(self.folder))
            self.folder.chmod(0o755)
            self.note = "binaries on a loop device with 128 kB of read-ahead"
        except (OSError, subprocess.CalledProcessError):
            self._detach()
            self.note = "binaries in a plain folder"

    def add(self, name: str, binary: str) -> tuple[str, dict[str, str]]:
        """Copies a binary; returns the copy's path, and the environment with which it finds its libraries."""
        folder = self.folder / name
        folder.mkdir()
        copy = folder / Path(binary).name
        shutil.copy2(binary, copy)
        needed = subprocess.run(["ldd", binary], capture_output=True, text=True).stdout
        libraries = re.findall(r"=> (/\S+)", needed)
        for library in libraries:
            shutil.copy2(os.path.realpath(library), folder / Path(library).name)
        os.sync()
        return str(copy), {"LD_LIBRARY_PATH": str(folder)} if libraries else {}

    def forget(self, name: str) -> None:
        """Drops the copy's pages from the page cache, so that the next process to read them is charged for them."""
        for file in (self.folder / name).iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def close(self) -> None:
        subprocess.run(["umount", str(self.folder)], capture_output=True)
        self._detach()

    def _detach(self) -> None:
        if self.device:
            subprocess.run(["losetup", "-d", self.device], capture_output=True)
            self.device = ""


def _quietly(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Running:
    """A program and its children, from start to stop."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        box: Box | None = None,
        cpus: Sequence[int] = (),
    ) -> None:
        self.box = box

        def before() -> None:
            if box is not None:
                box.enter()
            if cpus:
                os.sched_setaffinity(0, cpus)

        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=before,
                start_new_session=True,
            )
        self.begun = time.monotonic()  # Popen returns when the program was loaded

    def pids(self) -> list[int]:
        found, todo = [], [self.process.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            for task in Path(f"/proc/{pid}/task").glob("*"):
                todo += map(int, read(task / "children").split())
        return found

    def alive(self) -> bool:
        return self.process.poll() is None

    def cpu(self) -> float:
        """Seconds of processor time so far, in user and kernel mode, without threads that have ended."""
        spent = 0
        for pid in self.pids():
            for task in Path(f"/proc/{pid}/task").glob("*"):
                spent += int((read(task / "schedstat").split() or ["0"])[0])
        return spent / 1e9

    def _sum(self, file: str, field: str) -> int:
        total = 0
        for pid in self.pids():
            found = re.search(rf"^{field}:\s+(\d+) kB", read(f"/proc/{pid}/{file}"), re.M)
            total += int(found.group(1)) * 1024 if found else 0
        return total

    def pss(self) -> int:
        return self._sum("smaps_rollup", "Pss")

    def peak(self) -> int | None:
        """The maximum resident memory; None for several processes, because the kernel keeps it for each alone."""
        return self._sum("status", "VmHWM") if len(self.pids()) == 1 else None

    def interrupt(self, pid: int) -> None:
        """Sends SIGTERM and waits for the end."""
        os.kill(pid, signal.SIGTERM)
        self.process.wait(30)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)
        if self.box is not None:
            self.box.remove()


def work_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lean-bench-"))
    folder.chmod(0o755)
    return folder
