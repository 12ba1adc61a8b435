"""Read wandb's offline files: LevelDB's log format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

BLOCK, HEADER = 32768, 7
WHOLE, LAST = 1, 4  # kinds of chunks that end a record


def from_wandb(folder: Path) -> dict[int, float]:
    """Step to training loss of an offline run, up to where its file was cut off."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    found: dict[int, float] = {}
    for data in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {
            i.key or "/".join(i.nested_key): json.loads(i.value_json)
            for i in record.history.item
        }
        if "train/loss" in items:
            assert items["_step"] not in found, "a step was sent twice"
            found[items["_step"]] = items["train/loss"]
    return found


def _records(data: bytes) -> Iterator[bytes]:
    place, record = HEADER, b""  # the file begins with as many bytes of its own
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        kind, place = data[place + 6], place + HEADER
        record += data[place : place + length]
        place += length
        if kind in (WHOLE, LAST):
            yield record
            record = b""
