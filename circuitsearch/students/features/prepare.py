"""Features: what the frozen parts of a teacher say about the pages, computed once and kept on disk.

Every student shares the teacher's encoder, so the encoder's output of a page is the same for all of
them, and so are the teacher's logits at the answer tokens. Both are computed once per page (never
per question) and read back through a memory map in the thousands of small batches that training
takes. The folder's name is a hash of the teacher, the pages, their tokens and the options, so other
pages or another teacher never meet stale numbers; `shards` describes the files.

Sizes: states take pages x N x E numbers (donut-base: 4,800 x 1,024, 19.7 MB per page in float32,
half in bfloat16), logits answer tokens x V, or x (2 k + temperatures) when only the k best are kept
(`targets`). They are estimated first and refused when they would not fit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from circuitsearch.core.errors import ConfigError, DataError, StorageError, choice_problem
from circuitsearch.core.files import alone, content_hash
from circuitsearch.students.features.reader import FeatureBatch, Features
from circuitsearch.students.features.shards import shard_done, write_shard
from circuitsearch.students.features.targets import TeacherRows
from circuitsearch.teacher.decoders import continue_from
from circuitsearch.teacher.documents.collate import IGNORED, Example, collate, examples
from circuitsearch.teacher.documents.records import Page, fingerprint

if TYPE_CHECKING:
    from circuitsearch.teacher.loading import Teacher

__all__ = [
    "FeatureBatch",
    "Features",
    "Precision",
    "feature_bytes",
    "kept_teacher_rows",
    "prepare_features",
]

_FORMAT = 1
_WHOLE_VOCABULARY = 4096
"""Logits over at most so many tokens are kept whole."""
_BEST_TOKENS = 128
"""Tokens kept of a larger vocabulary."""

Precision = Literal["float32", "bfloat16"]


def prepare_features(
    teacher: Teacher,
    pages: Sequence[Page],
    folder: str | Path,
    *,
    batch_size: int = 16,
    max_bytes: int = 8 * 2**30,
    precision: Precision = "float32",
    best_tokens: int | None = None,
    temperatures: Sequence[float] = (1.0, 2.0),
    shard_bytes: int = 64 * 2**20,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Compute the features of pages, or open them where they have been computed.

    An interrupted run continues at the first unfinished shard. Of several processes that ask for
    the same features one computes them, the others wait.

    Args:
        teacher: whose encoder and decoder are asked.
        pages: the data set.
        folder: parent folder of all features; these go into a folder named by their key.
        batch_size: pages per encoder pass and examples per decoder pass.
        max_bytes: what all features in `folder` may take on disk together.
        precision: of states and logits on disk.
        best_tokens: teacher logits kept per answer token; None keeps vocabularies of up to 4,096
            tokens whole and the 128 best of larger ones.
        temperatures: temperatures that losses may use where only the best tokens are kept.
        shard_bytes: size at which a shard ends.
        progress: called with (pages done, pages) after every shard.

    Raises:
        ConfigError: if the features would take more than `max_bytes` with those already there.
        DataError: if there are no questions, a question does not fit the teacher, or a shard on
            disk is damaged.
        StorageError: if the disk is full or cannot be written.
    """
    rows = examples(pages, teacher.tokens)
    if not rows:
        raise DataError("Features: the pages carry no question; give pages with questions")
    kept = _kept(teacher, precision, best_tokens, temperatures)
    key = _key(teacher, pages, rows, kept, shard_bytes)
    target = Path(folder) / key
    sizes = _page_sizes(teacher, len(pages), rows, kept)
    cuts = _cuts(sizes, shard_bytes)

    def missing() -> list[int]:
        return [index for index in range(len(cuts)) if not shard_done(target, index)]

    # complete ones are only read, and may be another user's
    with alone(target) if missing() else nullcontext():
        left = missing()
        if left:
            more = sum(sum(sizes[slice(*cuts[index])]) for index in left)
            _check_size(sum(sizes), more, len(pages), max_bytes, Path(folder))
        for index in left:
            first, last = cuts[index]
            here = [row for row in rows if first <= row.page < last]
            tensors = _shard(teacher, pages[first:last], first, here, kept, batch_size)
            write_shard(target, index, tensors)
            if progress is not None:
                progress(last, len(pages))
    return Features(target, key, pages, rows, teacher.tokens.pad_id, cuts, kept.temperatures)


def feature_bytes(teacher: Teacher, pages: Sequence[Page], precision: Precision = "float32") -> int:
    """Return what `prepare_features` of these pages takes on disk, but for file headers."""
    kept = _kept(teacher, precision, None, (1.0, 2.0))
    return sum(_page_sizes(teacher, len(pages), examples(pages, teacher.tokens), kept))


def kept_teacher_rows(
    teacher: Teacher, logits: Tensor, temperatures: Sequence[float]
) -> TeacherRows:
    """Return of teacher logits [n, V] what `prepare_features` keeps."""
    kept = _kept(teacher, "float32", None, temperatures)
    return TeacherRows.of(logits, kept.top, kept.temperatures)


@dataclass(frozen=True)
class _Kept:
    """How numbers are kept on disk."""

    precision: Precision
    top: int | None
    temperatures: tuple[float, ...]

    @property
    def number(self) -> int:
        """Bytes of one number."""
        return 4 if self.precision == "float32" else 2

    @property
    def dtype(self) -> torch.dtype:
        """Type of states and logits."""
        return torch.float32 if self.precision == "float32" else torch.bfloat16


def _kept(
    teacher: Teacher,
    precision: Precision,
    best_tokens: int | None,
    temperatures: Sequence[float],
) -> _Kept:
    """Settle the options; what does not matter for a whole vocabulary does not enter the key."""
    if precision not in get_args(Precision):
        raise ConfigError(choice_problem("precision", precision, get_args(Precision)))
    if best_tokens is not None and best_tokens < 1:
        raise ConfigError(f"best_tokens: got {best_tokens}, allowed are integers from 1, or None")
    vocabulary = teacher.shape.decoder.vocabulary
    if best_tokens is None and vocabulary > _WHOLE_VOCABULARY:
        best_tokens = _BEST_TOKENS
    if best_tokens is None or best_tokens >= vocabulary:
        return _Kept(precision, None, ())
    return _Kept(precision, best_tokens, tuple(sorted(set(temperatures))))


def _key(
    teacher: Teacher, pages: Sequence[Page], rows: Sequence[Example], kept: _Kept, shard_bytes: int
) -> str:
    """Return the hash of everything that decides the numbers and their place."""
    return content_hash(
        {
            "format": _FORMAT,
            "teacher": teacher.fingerprint,
            "pages": fingerprint(pages),
            "tokens": [[row.page, list(row.ids), row.prompt] for row in rows],
            "kept": [kept.precision, kept.top, list(kept.temperatures)],
            "shard_bytes": shard_bytes,
        }
    )


def _page_bytes(teacher: Teacher, kept: _Kept) -> int:
    return teacher.shape.encoder.tokens * teacher.shape.decoder.encoder_width * kept.number


def _row_bytes(teacher: Teacher, kept: _Kept) -> int:
    """Bytes of the logits of one answer token: V numbers, or k with their ids and the tails."""
    if kept.top is None:
        return teacher.shape.decoder.vocabulary * kept.number
    return kept.top * (kept.number + 4) + 4 * len(kept.temperatures)


def _page_sizes(teacher: Teacher, pages: int, rows: Sequence[Example], kept: _Kept) -> list[int]:
    """Return the bytes of each page's features, exact but for file headers."""
    sizes = [_page_bytes(teacher, kept)] * pages
    for row in rows:
        sizes[row.page] += (len(row.ids) - row.prompt) * _row_bytes(teacher, kept)
    return sizes


def _check_size(size: int, more: int, pages: int, max_bytes: int, folder: Path) -> None:
    """Refuse features that are larger than allowed or than the disk.

    Args:
        size: of all features of the pages.
        more: of those that are not there yet.
        pages: how many.
        max_bytes: what all in the folder may take.
        folder: where they go.
    """
    each = f"{size / 2**20:,.1f} MiB for {pages} pages, {size / pages / 2**20:,.2f} MiB each"
    there = sum(file.stat().st_size for file in folder.glob("*/shard-*.safetensors"))
    if there + more > max_bytes:
        raise ConfigError(
            f"Features would take {each}; {str(folder)!r} holds {there / 2**20:,.1f} MiB and may "
            f"hold {max_bytes / 2**20:,.1f} MiB (cache_gigabytes). Use fewer pages, "
            "cache_precision: bfloat16, or raise cache_gigabytes; features of pages that no "
            "search uses any more can be deleted, by folder"
        )
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if more > free:
        raise StorageError(
            f"Features would take {each}, {more / 2**20:,.1f} MiB of it still to be written; "
            f"{str(folder)!r} has {free / 2**20:,.1f} MiB free. Choose another folder (cache), "
            "cache_precision: bfloat16, or use fewer pages"
        )


def _cuts(sizes: Sequence[int], shard_bytes: int) -> list[tuple[int, int]]:
    """Return (first, last + 1) pages of each shard: a shard ends when it reaches `shard_bytes`."""
    cuts, first, filled = [], 0, 0
    for page, size in enumerate(sizes):
        filled += size
        if filled >= shard_bytes or page == len(sizes) - 1:
            cuts.append((first, page + 1))
            first, filled = page + 1, 0
    return cuts


def _shard(
    teacher: Teacher,
    pages: Sequence[Page],
    first: int,
    rows: Sequence[Example],
    kept: _Kept,
    batch_size: int,
) -> dict[str, Tensor]:
    """Compute one shard: states of its pages and logits of its examples."""
    encoded = [
        teacher.encode(teacher.pixel_values([page.image() for page in pages[i : i + batch_size]]))
        for i in range(0, len(pages), batch_size)
    ]
    states = torch.cat(encoded)
    wanted = (len(pages), teacher.shape.encoder.tokens, teacher.shape.decoder.encoder_width)
    if tuple(states.shape) != wanted:
        raise DataError(
            f"Features: the encoder gave states of shape {tuple(states.shape)}, its checkpoint "
            f"promises {wanted}; check the image size in preprocessor_config.json"
        )
    tensors = {"states": states.to(kept.dtype).cpu()}
    said = _answers(teacher, states, first, rows, kept, batch_size)
    if not said:
        return tensors
    tensors["logits"] = torch.cat([one.logits for one in said]).to(kept.dtype).cpu()
    if kept.top is not None:
        tensors["ids"] = torch.cat([one.ids for one in said if one.ids is not None]).int().cpu()
        tensors["tails"] = torch.cat([one.tails for one in said if one.tails is not None]).cpu()
    return tensors


def _answers(
    teacher: Teacher,
    states: Tensor,
    first: int,
    rows: Sequence[Example],
    kept: _Kept,
    batch_size: int,
) -> list[TeacherRows]:
    """Return the teacher's logits per example; examples of like length share a batch."""
    view = teacher.decoder
    said: dict[int, TeacherRows] = {}
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    for i in range(0, len(order), batch_size):
        chosen = order[i : i + batch_size]
        batch = collate([rows[index] for index in chosen], teacher.tokens.pad_id)
        pages, places = torch.unique(batch.pages - first, return_inverse=True)
        with torch.no_grad():
            device = states.device
            memory = view.memory(states[pages.to(device)], places.to(device))
            stream = continue_from(view, view.embed(batch.ids.to(device)), memory)
            answers = batch.labels != IGNORED
            logits = view.readout(stream[answers.to(device)])
        counts = answers.sum(dim=1).tolist()
        for index, piece in zip(chosen, torch.split(logits, counts), strict=True):
            said[index] = TeacherRows.of(piece, kept.top, kept.temperatures)
    return [said[index] for index in range(len(rows))]
