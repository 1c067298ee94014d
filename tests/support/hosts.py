"""Hosts made of Linux namespaces, for tests: each with its own address, host name, processes and
sshd.

They share the machine's disk, as hosts with a network file system do. Nothing about them has a name
outside: their namespaces live as long as their first process, which the kernel kills when the
process that made them dies, so even a killed test leaves no interface, mount, sshd or rank behind.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

NEEDS = {
    "ip": "iproute2",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "pdsh": "pdsh",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])


def missing() -> str | None:
    """Why hosts cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    packages = {
        package for command, package in NEEDS.items() if shutil.which(command, path=PATH) is None
    }
    if packages:
        return f"not installed: {', '.join(sorted(packages))}"
    try_out = (
        "ip link add br0 type bridge && ip link add name va type veth peer name vb && mount -t"
        " tmpfs tmpfs /run"
    )
    tried = subprocess.run(
        [
            "unshare",
            "--net",
            "--uts",
            "--pid",
            "--mount",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            try_out,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": PATH},
    )
    return f"namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


class Hosts:
    """`count` hosts node1, node2, … on 10.77.0.0/24. As on Debian, each takes its own name for
    127.0.1.1.

    folder: for keys and the hostfile, which gives every host one slot.
    """

    def __init__(self, count: int, folder: Path):
        self.folder = folder
        self.hostfile = folder / "hostfile"
        self.names = [f"node{number}" for number in range(1, count + 1)]
        self._processes = []
        try:
            self._write_files()
            self._switch = self._spawn(["unshare", "--net", "sleep", "infinity"])
            self._wait(
                lambda: _namespace(self._switch.pid, "net") != _namespace("self", "net"),
                "the switch",
            )
            self._in_switch("ip", "link", "add", "br0", "type", "bridge")
            self._in_switch("ip", "link", "set", "br0", "up")
            self._first = {
                name: self._boot(number, name) for number, name in enumerate(self.names, 1)
            }
            self._wait(
                lambda: all(
                    self.run("node1", ["ssh", name, "true"], timeout=60).returncode == 0
                    for name in self.names
                ),
                "sshd on every host",
            )
        except BaseException:
            self.close()
            raise

    def close(self):
        """End every host and all that runs on it."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def run(self, host, command, timeout=240, cwd=None, **env):
        """Run a command on a host and wait for it; returns its CompletedProcess."""
        process = self.start(
            host, command, cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **env
        )
        try:
            out, error = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, error)

    def start(self, host, command, cwd=None, stdout=None, stderr=None, **env):
        enter = [
            "nsenter",
            "--target",
            str(self._first[host]),
            "--mount",
            "--uts",
            "--net",
            "--pid",
            f"--wd={cwd or self.folder}",
        ]
        environment = {**os.environ, "PATH": PATH, **env}
        return subprocess.Popen(
            [*enter, *map(str, command)],
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )

    def processes(self, host, word) -> list:
        """Ids, on the host, of its processes whose command line has the word."""
        listed = self.run(host, ["pgrep", "-f", word], timeout=20).stdout.split()
        return [int(pid) for pid in listed]

    def cut(self, host):
        """Take the host's cable out."""
        self._in_switch("ip", "link", "set", host, "down")

    def mend(self, host):
        self._in_switch("ip", "link", "set", host, "up")

    def _write_files(self):
        for key in ("key", "host_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key], check=True
            )
        self.hostfile.write_text("".join(f"{name} slots=1\n" for name in self.names))
        (self.folder / "ssh_config").write_text(
            f"Host *\n  IdentityFile {self.folder}/key\n  StrictHostKeyChecking no\n "
            " UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )
        (self.folder / "sshd_config").write_text(
            f"HostKey {self.folder}/host_key\nAuthorizedKeysFile {self.folder}/key.pub\nStrictModes"
            " no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nPidFile none\n"
        )

    def _boot(self, number, name) -> int:
        """Start a host; returns the process id, seen from outside, of its first process."""
        hosts = "".join(
            f"{'127.0.1.1' if name == other else f'10.77.0.{n}'} {other}\n"
            for n, other in enumerate(self.names, 1)
        )
        (self.folder / f"hosts.{name}").write_text("127.0.0.1 localhost\n" + hosts)
        script = f"""hostname {name} && mount -t tmpfs tmpfs /run && mkdir /run/sshd &&
            mount --bind '{self.folder}/hosts.{name}' /etc/hosts &&
            mount --bind '{self.folder}/ssh_config' /etc/ssh/ssh_config &&
            ip link set lo up && while ! ip link set eth0 up; do sleep 0.05; done 2>/dev/null &&
            ip address add 10.77.0.{number}/24 dev eth0 &&
            exec {shutil.which("sshd", path=PATH)} -D -f '{self.folder}/sshd_config'"""
        process = self._spawn(
            [
                "unshare",
                "--net",
                "--uts",
                "--pid",
                "--mount",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                script,
            ]
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        self._wait(lambda: children.read_text().split(), name)
        first = int(children.read_text().split()[0])
        self._in_switch(
            "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(first)
        )
        self._in_switch("ip", "link", "set", name, "master", "br0", "up")
        return first

    def _in_switch(self, *command):
        subprocess.run(
            ["nsenter", "--target", str(self._switch.pid), "--net", *command],
            check=True,
            env={**os.environ, "PATH": PATH},
        )

    def _spawn(self, command):
        die_with_parent = ctypes.CDLL(None).prctl
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": PATH},
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(1, signal.SIGKILL),
        )
        self._processes.append(process)
        return process

    def _wait(self, condition, what):
        end = time.monotonic() + 60
        while not condition():
            if time.monotonic() > end or any(
                process.poll() is not None for process in self._processes
            ):
                raise RuntimeError(f"{what} did not come up")
            time.sleep(0.1)


def _namespace(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{kind}")
