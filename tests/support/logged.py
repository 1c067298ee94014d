"""What loggers keep of a run, read back."""

import json
import struct


def read_wandb(path):
    """({metric pattern: its x-axis}, [history item], what the run is called) of a .wandb file: a
    LevelDB log of wandb's own protobuf records."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    at = 7
    content = b""
    axis_of = {}
    run = {}
    history = []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 0 < -at % 32768 < 7:  # no header fits into the rest of a block
            at += -at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        content = content + data[at + 7 : at + 7 + size]
        at = at + 7 + size
        if kind not in (1, 4):  # the record goes on in the next block
            continue
        record = wandb_internal_pb2.Record.FromString(content)
        content = b""
        if record.WhichOneof("record_type") == "run":
            run = {"id": record.run.run_id, "project": record.run.project}
            run |= {"name": record.run.display_name, "notes": record.run.notes}
        elif record.WhichOneof("record_type") == "metric" and record.metric.step_metric:
            axis_of[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif record.WhichOneof("record_type") == "history":
            history.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
            )
    return axis_of, history, run


def read_tensorboard(folder):
    """{tag: [(step, value)]} of one of TensorBoard's folders, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    curves = {}
    for tag in board.Tags()["scalars"]:
        curves[tag] = [(event.step, event.value) for event in board.Scalars(tag)]
    return curves
