"""Where the ranks of a run meet: the store that rank 0 (or torchrun) keeps at
MASTER_ADDR:MASTER_PORT.

torchrun starts ranks anew, after one has died, at the store in which the last try left its notes,
and on several hosts their counts of restarts may differ. So rank 0 calls out a part of the store
for each try, and the others come to the latest one that was called out.
"""

import os
import secrets
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
import torch.distributed

from gpt.cluster.launch import Launch, another_port
from gpt.errors import RunError, UserError, in_brief

CALL = "part of the latest try"
SCHEME = "gpt"
# rank 0 knows its own name; to hosts that come up together it is known a little later than they are
RESOLVE_SECONDS = 10.0
RESOLVE_SECONDS_OF_OTHERS = 60.0
# for rank 0 to reach the store that it keeps itself
OWN_STORE_SECONDS = 60.0


class Meeting(NamedTuple):
    """A run's ranks that have come. board: their part of the store. hosts: every rank's host name,
    in the order of ranks."""

    board: torch.distributed.Store
    hosts: tuple[str, ...]
    part: str

    @property
    def init_method(self) -> str:
        """Where torch makes the process group of these ranks, and of no try before."""
        return f"{SCHEME}://{self.part}"


def store(seconds: float, is_master: bool = False) -> torch.distributed.Store:
    """A connection to the whole store, which answers a question within `seconds` or raises
    torch.distributed.DistError."""
    return torch.distributed.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=is_master,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )


def call_out(whole: torch.distributed.Store) -> str:
    """Begin a try, on rank 0; returns its part."""
    part = secrets.token_hex(8)
    whole.set(CALL, part)
    return part


def latest_part(whole: torch.distributed.Store) -> str | None:
    """The part that rank 0 has called out last; None where it has called out none."""
    return whole.get(CALL).decode() if whole.check([CALL]) else None


def part_of(whole: torch.distributed.Store, part: str) -> torch.distributed.Store:
    return torch.distributed.PrefixStore(f"gpt {part}", whole)


def place() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def is_kept_by_torchrun() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def join(launch: Launch, seconds: float) -> torch.distributed.Store:
    """The whole store, which rank 0 opens unless torchrun keeps it. Raises UserError where rank 0
    cannot open it, RunError where it is out of reach for `seconds`."""
    patience = RESOLVE_SECONDS if launch.rank == 0 else RESOLVE_SECONDS_OF_OTHERS
    _require_known(os.environ["MASTER_ADDR"], patience)
    kept_here = launch.rank == 0 and not is_kept_by_torchrun()
    try:
        if not kept_here:
            return store(seconds)
        own = store(min(seconds, OWN_STORE_SECONDS), is_master=True)
        own.set_timeout(timedelta(seconds=seconds))
        return own
    except torch.distributed.DistError as error:
        if kept_here:
            raise UserError(
                f"rank 0 cannot listen at {place()} on {socket.gethostname()}",
                mend=f"if another run holds that port, {another_port()}; else the address is not"
                f" this host's ({in_brief(error)})",
            ) from error
        raise RunError(
            f"rank {launch.rank} on {socket.gethostname()} could not reach rank 0 at {place()}"
            f" within {seconds:g} s: rank 0 has not started, or that address or port is closed to"
            " this host; tools/preflight.py looks into it"
        ) from error


def _require_known(address: str, seconds: float) -> None:
    """Raise UserError where a name leads to no address for so long: torch would try it for
    minutes."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(address, None)
            return
        except (OSError, UnicodeError) as error:
            if isinstance(error, UnicodeError) or time.monotonic() > end:
                raise UserError(
                    f"MASTER_ADDR is {address!r}, a name that {socket.gethostname()} does not know"
                    f" ({in_brief(error)})",
                    mend="give the name or the address of rank 0's host as this one knows it, or"
                    " add it to /etc/hosts",
                ) from error
            time.sleep(0.5)


def _rendezvous(
    url: str, timeout: timedelta, **_: Any
) -> Iterator[tuple[torch.distributed.Store, int, int]]:
    """What torch asks for a process group at an `init_method`: (a store, this rank, ranks).

    The store is a connection of its own, since its time limit is another one.
    """
    address = urlparse(url)
    whole = store(timeout.total_seconds())
    group = torch.distributed.PrefixStore("group", part_of(whole, address.netloc))
    yield group, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    raise RuntimeError("a rendezvous is held once")


torch.distributed.register_rendezvous_handler(SCHEME, _rendezvous)
