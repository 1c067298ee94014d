"""Tasks on all cores: processes that end with their parent, however it ends, and whose death is noticed."""

import multiprocessing
import signal
from multiprocessing.connection import wait

from gpt.errors import RunError, UserError


def spread(work, tasks, count: int, report):
    """Call `work(task, report)` for every task on `count` processes; yield the results as they come.

    work: picklable. report(number): called here for every call of `report` there. count 1: in this process. Raises the
    first UserError that `work` raises, and RunError where a process is lost.
    """
    if count == 1:
        for task in tasks:
            yield work(task, report)
        return
    context, tasks = multiprocessing.get_context("spawn"), iter(tasks)
    processes, busy = [], {}
    try:
        for _, task in zip(range(count), tasks):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(work, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            ours.send(task)
            busy[ours] = processes[-1]
        while busy:
            for connection in wait(list(busy)):
                kind, value = _receive(connection, busy[connection])
                if kind == "report":
                    report(value)
                    continue
                task = next(tasks, None)
                if task is None:
                    del busy[connection]
                    connection.close()
                else:
                    connection.send(task)
                yield value
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _receive(connection, process):
    try:
        kind, value = connection.recv()
    except EOFError as error:
        process.join()
        raise RunError(f"a worker process ended with exit code {process.exitcode}, for want of memory perhaps: what is done is "
                       "kept, the same command goes on; fewer --workers need less") from error  # fmt: skip
    if kind == "mistake":
        raise UserError(value)
    return kind, value


def _serve(work, connection):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    try:
        while True:
            task = connection.recv()
            try:
                done = work(task, lambda number: connection.send(("report", number)))
            except UserError as error:
                connection.send(("mistake", str(error)))
                return
            connection.send(("done", done))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # all is done, or the parent is gone
