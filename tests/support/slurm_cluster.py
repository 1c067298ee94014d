"""Slurm on hosts made of Linux namespaces, for tests: Debian's packages slurm-wlm and munge."""

import secrets
import shutil
import time

from hosts import PATH

NEEDS = {
    "munged": "munge",
    "sbatch": "slurm-client",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
}
CONF = """ClusterName=test
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
AuthType=auth/munge
AuthInfo=cred_expire=15
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
OverTimeLimit=0
MinJobAge=300
ReturnToService=2
GresTypes=gpu
NodeName=node[1-2] CPUs=16 Gres=gpu:8 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why Slurm cannot be set up here, or None."""
    packages = {
        package for command, package in NEEDS.items() if shutil.which(command, path=PATH) is None
    }
    return f"not installed: {', '.join(sorted(packages))}" if packages else None


class Slurm:
    """A cluster of a `Hosts(2, …)`, whose processes end with the hosts. Two partitions: jobs in
    `high` take the nodes of those in `low`, which have a minute to end."""

    def __init__(self, hosts):
        self._hosts = hosts
        folder = hosts.folder / "slurm"
        folder.mkdir()
        self._conf = folder / "slurm.conf"
        self._conf.write_text(CONF.format(folder=folder))
        for number in range(8):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self._logs = folder
        for host in hosts.names:
            munge = (
                "mkdir -p /run/munge && chmod 755 /run/munge && exec munged --force --foreground"
                f" --key-file={key} --log-file={folder}/munged.{host}.log --seed-file=/run/seed"
                " --pid-file=/run/munge/pid --socket=/run/munge/munge.socket.2"
            )
            self._start(host, ["sh", "-c", munge])
        self._start("node1", ["slurmctld", "-D", "-f", self._conf])
        for host in hosts.names:
            self._start(host, ["slurmd", "-D", "-N", host, "-f", self._conf])
        self._wait_for_nodes()

    def _start(self, host, command):
        with open(self._logs / "daemons.log", "a") as log:
            self._hosts.start(host, command, self._logs, log, log)

    def _wait_for_nodes(self):
        end = time.monotonic() + 60
        while self.run("sinfo", "-h", "-o", "%T", "-p", "low").strip() != "idle":
            if time.monotonic() > end:
                raise RuntimeError(f"Slurm did not come up; see {self._logs}")
            time.sleep(0.5)

    def run(self, *command, cwd=None, **env):
        """What a command of Slurm's prints on node1, whether or not it succeeds."""
        done = self._hosts.run(
            "node1", command, cwd=cwd, SLURM_CONF=str(self._conf), LC_ALL="C", **env
        )
        return done.stdout + done.stderr

    def job(self, number):
        """{name: value} that `scontrol show job` tells."""
        words = self.run("scontrol", "-o", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_state(self, number, *states, seconds=120):
        """The job, as `job` tells, once it is in one of the states."""
        end = time.monotonic() + seconds
        while (job := self.job(number)).get("JobState") not in states:
            if time.monotonic() > end:
                raise RuntimeError(f"job {number} is not {states} after {seconds} s: {job}")
            time.sleep(0.5)
        return job
