"""Files and content keys: atomic writes, canonical JSON, hashes and seeds derived from content.

A file is written under a temporary name in the same folder, flushed to the disk and then renamed
over its final name (`os.replace` is atomic within one file system). A reader therefore sees the old
file or the new one, never half of one, also when the process is killed.

Every random choice of the package takes its seed from *what it is about* (`seed_from`), not from a
global generator: a resumed study draws exactly what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from circuitsearch.core.errors import DataError, StorageError, nearest, raise_together

__all__ = [
    "alone",
    "canonical_json",
    "content_hash",
    "open_to_umask",
    "ordered_json",
    "plain",
    "read_json",
    "record_fields",
    "seed_from",
    "write_bytes",
    "write_json",
    "write_text",
]


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically; missing parent folders are created.

    Raises:
        StorageError: the file cannot be written; an older file under that name is untouched.
    """
    target = Path(path)
    # A random suffix keeps two workers that write the same result from sharing a temporary file.
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # 0o666 lets the umask decide, as for any ordinary file (tempfile would give 0o600).
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise StorageError(
            f"Cannot write {str(target)!r}: {error.strerror or error}. "
            "Check that the folder exists, is writable and has free space."
        ) from error
    finally:
        # Gone already after a successful rename; left over after any failure, Ctrl-C included.
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes from making the same file or folder meanwhile; they wait.

    The lock is a file beside it, with the suffix `.lock`.

    Raises:
        StorageError: the folder that holds it cannot be written.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise StorageError(
            f"Cannot write {str(path)!r}: {error.strerror or error}. "
            "Check that the folder exists, is writable and has free space."
        ) from error
    try:
        yield
    finally:
        lock.release()


def open_to_umask(path: Path) -> None:
    """Give a file that a library wrote for its owner alone the mode of an ordinary new file.

    safetensors writes 0o600: nobody else could load a checkpoint from a shared folder.

    Raises:
        OSError: the mode cannot be changed, or the folder not be written.
    """
    probe = path.with_name(f".{secrets.token_hex(8)}.tmp")  # only a new file shows the umask
    probe.touch(exist_ok=False)
    try:
        path.chmod(probe.stat().st_mode)
    finally:
        probe.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically and without translating line ends.

    Raises:
        DataError: the text holds half of a surrogate pair, which UTF-8 cannot express.
        StorageError: the file cannot be written.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"Cannot write {os.fspath(path)!r} as UTF-8: {error}") from error
    write_bytes(path, data)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` to `path` as readable JSON: two-space indent, sorted keys, no NaN.

    Raises:
        DataError: `obj` is not plain JSON or holds NaN or infinity.
        StorageError: the file cannot be written.
    """
    try:
        text = json.dumps(plain(obj), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"Cannot write {os.fspath(path)!r} as JSON: {error}") from error
    write_text(path, text + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file (UTF-8, with or without a byte-order mark).

    Raises:
        DataError: the file is missing, not UTF-8, not JSON, or holds NaN or infinity; the message
            names the file and, for bad JSON, the line and column.
    """
    name = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read {name!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"Cannot read {name!r}: it is not UTF-8 text ({error})") from error

    def refuse(constant: str) -> None:
        raise DataError(f"Cannot read {name!r}: {constant} is not a JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name!r} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{name!r} is not usable JSON: {error}") from error


def plain(obj: Any) -> Any:
    """Return `obj` with tuples as lists and numpy scalars as Python numbers, ready for JSON."""
    if isinstance(obj, dict):
        return {key: plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [plain(value) for value in obj]
    # numpy scalars: `item` gives the Python number. Arrays are refused later, by json itself.
    if hasattr(obj, "item") and getattr(obj, "shape", None) == ():
        return obj.item()
    return obj


def canonical_json(obj: Any) -> str:
    """Return the one JSON text of `obj`: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        DataError: `obj` is not plain JSON. Objects are not turned into text silently, because
            their `repr` may hold a memory address and change from run to run.
    """
    try:
        return json.dumps(plain(obj), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"Cannot derive a key from {type(obj).__name__}: {error}") from error


def ordered_json(obj: Any) -> str:
    """Return JSON of `obj` in its own order, for settings whose order means something.

    Raises:
        DataError: `obj` is not plain JSON.
    """
    try:
        return json.dumps(plain(obj), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"Cannot write {type(obj).__name__} as JSON: {error}") from error


def content_hash(obj: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of `obj`'s canonical JSON."""
    return hashlib.sha256(canonical_json(obj).encode("ascii")).hexdigest()[:16]


def seed_from(*parts: object) -> int:
    """Return an integer in [0, 2**63) that depends on `parts` and their order alone.

    Args:
        *parts: plain JSON values (text, numbers, lists ...), e.g. `(study_seed, plan.hash)`.
    """
    digest = hashlib.sha256(canonical_json(list(parts)).encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def record_fields(record: type[Any], data: Any) -> dict[str, Any]:
    """Return `data` as the keyword arguments of the dataclass `record`, names checked.

    Raises:
        DataError: `data` is no mapping, misses a field without default or has an unknown field;
            all faults together.
    """
    heading = f"Reading a {record.__name__}"
    if not isinstance(data, dict):
        raise DataError(f"{heading}: expected a JSON object, got {type(data).__name__}")
    known = {field.name: field for field in fields(record)}
    problems = [
        f"missing field {name!r}"
        for name, field in known.items()
        if name not in data and field.default is MISSING and field.default_factory is MISSING
    ]
    for name in data:
        if name not in known:
            guess = nearest(str(name), known)
            hint = f"; did you mean {guess!r}?" if guess else ""
            problems.append(f"unknown field {name!r}{hint}")
    raise_together(problems, DataError, heading)
    return dict(data)
