"""Reading what the client of Weights & Biases has written."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def wandb_records(path: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file: a 7-byte header, then a LevelDB log.

    The log is cut into blocks of 32 KiB. A chunk is a header (checksum, length, kind) and data; a record is one
    chunk of kind 1, or a first (2), middle (3) and last (4) ones. Fewer than 7 bytes at a block's end are padding.
    Of a file that is still being written, the records that are whole.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, data = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if position + 7 + length > len(content):
            return  # the last chunk is being written
        data += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(data)
            yield record
            data = b""


def logged(run_dir: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """All records of the run's only .wandb file, and the rows that were logged."""
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    records: list[Any] = []
    for _ in range(600):  # wandb's own process writes the file, perhaps after `finish` has returned: 30 s are plenty
        records = list(wandb_records(path))
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(0.05)
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    return records, rows
