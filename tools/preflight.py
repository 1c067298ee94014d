"""Look at the hosts of a hostfile before a run holds them: one line per finding, each failure with
its fix.

    python tools/preflight.py --hostfile hostfile --ds_config ds_configs/24h.json
    python tools/preflight.py --hostfile hostfile --data_root data/books --run_dir runs/24h --json
    python tools/preflight.py --hostfile hostfile --write_env    writes .deepspeed_env

Run it where and as `deepspeed` will be run. It looks at ssh, versions, code, dataset, devices, host
names and network interfaces, clocks, disks, whether all share the run's folder, .deepspeed_env, and
measures an all-reduce between every two hosts (of more than eight, between neighbours). Exit code
0: fit; 2: a failure was found.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt.errors import Parser, UserError, command, explain_imports

explain_imports()

from gpt.config.options import SAMPLE

LONGEST_TIMEOUT = 3600


def main():
    parser = Parser(__doc__)
    parser.add_argument(
        "--hostfile", required=True, help="one line per host, such as: node1 slots=8"
    )
    parser.add_argument(
        "--ds_config", metavar="FILE.json", help="the run's config; tells data_root and run_dir"
    )
    parser.add_argument(
        "--data_root", help=f"the dataset's folder (default: the config's, or {SAMPLE})"
    )
    parser.add_argument("--run_dir", help="the run's folder (default: the config's, or runs)")
    parser.add_argument(
        "--port", type=int, default=29500, help="the run's --master_port (default 29500)"
    )
    parser.add_argument("--ssh_port", type=int, help="sshd's port, as for deepspeed")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        help="seconds for the hosts to answer, and for the network",
    )
    parser.add_argument(
        "--write_env",
        action="store_true",
        help="write .deepspeed_env, which DeepSpeed exports on all hosts",
    )
    parser.add_argument("--json", action="store_true", help="print all findings as JSON")
    args = parser.parse_args()
    check(args)

    from gpt.cluster.hostfile import read_hostfile
    from gpt.cluster.preflight import Cluster, inspect

    hosts = read_hostfile(args.hostfile)
    data_root, run_dir = folders_of_run(args, ranks=sum(hosts.values()))
    cluster = Cluster(
        hosts,
        Path(data_root).absolute(),
        Path(run_dir).absolute(),
        args.port,
        args.timeout,
        args.ssh_port,
    )
    findings = inspect(cluster)
    print(findings.as_json() if args.json else findings.table())
    if args.write_env:
        write_environment(findings.environment)
    return 0 if findings.ok else 2


def check(args):
    """Raise UserError where a number is out of its range."""
    from gpt.cluster.launch import LAST_PORT

    if not 1 <= args.timeout <= LONGEST_TIMEOUT:
        raise UserError(
            f"command line: --timeout {args.timeout:g}",
            mend=f"give seconds, from 1 to {LONGEST_TIMEOUT}",
        )
    for option, port in (("--port", args.port), ("--ssh_port", args.ssh_port)):
        if port is not None and not 0 < port <= LAST_PORT:
            raise UserError(f"command line: {option} {port}", mend=f"give 1 to {LAST_PORT}")


def folders_of_run(args, ranks):
    """(data_root, run_dir) by the command line, the config, or the defaults."""
    if not args.ds_config:
        return args.data_root or SAMPLE, args.run_dir or "runs"

    from gpt.config.resolve import read
    from gpt.training.run_data import look_up_vocabulary

    overrides = {}
    if args.data_root:
        overrides["gpt.data_root"] = args.data_root
    if args.run_dir:
        overrides["gpt.run_dir"] = args.run_dir
    draft = read(args.ds_config, ranks, overrides)
    look_up_vocabulary(draft)
    config = draft.settle()
    return config.options.data_root, config.run_dir


def write_environment(recommended):
    """Add what is recommended to .deepspeed_env, and show it."""
    from gpt.cluster.hostfile import read_environment
    from gpt.cluster.preflight import ENVIRONMENT
    from gpt.files import write_atomically

    if not recommended:
        raise UserError(
            "--write_env: nothing to write, since there is one host, or the hosts have no network"
            " interface's name in common; where they differ set GLOO_SOCKET_IFNAME and"
            " NCCL_SOCKET_IFNAME on each host"
        )
    path = Path(ENVIRONMENT)
    variables = {**read_environment(path), **recommended}
    write_atomically(path, "".join(f"{name}={value}\n" for name, value in variables.items()))
    listing = "".join(f"  {name}={value}\n" for name, value in variables.items())
    print(f"{path}:\n{listing}", end="", file=sys.stderr)


if __name__ == "__main__":
    command(main)
