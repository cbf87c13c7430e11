"""Tensors on disk in shards: written atomically, checked by SHA-256, read through a memory map.

A shard is `shard-00007.safetensors` and, written after it, `shard-00007.json` with its checksum. A
killed run therefore leaves whole shards and perhaps one without its record, which is written again:
work resumes at the first shard without record. Opening verifies every checksum, because a memory
map would otherwise serve damaged numbers silently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from circuitsearch.core.errors import DataError
from circuitsearch.core.files import read_json, write_bytes, write_json

__all__ = ["open_shard", "shard_done", "write_shard"]


def write_shard(folder: Path, index: int, tensors: Mapping[str, Tensor]) -> None:
    """Write one shard, then its record.

    Raises:
        StorageError: if the folder cannot be written.
    """
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    write_bytes(_file(folder, index), data)
    record = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_json(_record(folder, index), record)


def shard_done(folder: Path, index: int) -> bool:
    """Tell whether a shard was written to the end."""
    return _record(folder, index).is_file()


def open_shard(folder: Path, index: int) -> dict[str, Tensor]:
    """Return the tensors of a shard as views of a memory map; treat them as read-only.

    Raises:
        DataError: if the shard is missing or is not what was written.
    """
    path = _file(folder, index)
    again = f"delete the folder {str(folder)!r}, it will be computed again"
    try:
        record = read_json(_record(folder, index))
    except DataError as error:
        raise DataError(f"{error}; {again}") from error
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != record["sha256"]:
            raise DataError(
                f"{str(path)!r}: its SHA-256 is {found[:12]}..., recorded is "
                f"{record['sha256'][:12]}...: the file was damaged or changed; {again}"
            )
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise DataError(f"{str(path)!r}: it cannot be read ({error}); {again}") from error


def _file(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.safetensors"


def _record(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.json"
