"""Writing a student (or any Donut checkpoint) as ONNX files that answer on their own.

    encoder.onnx, decoder.onnx   the two graphs of `onnx_graphs`, for any batch and any lengths
    tokenizer.json               as it lies in the checkpoint
    manifest.json                inputs and outputs with their shapes, prompt, end tokens, forbidden
                                 tokens, longest sequence, preparation of pixels
    answer_onnx.py               answers with the files above (`onnx_answers`)

The page's size is fixed, as it is in the checkpoint. Weights beyond the 2 GiB that one file may
hold lie beside their graph in a file of their own.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from circuitsearch.core.components import Kind
from circuitsearch.core.errors import (
    CircuitSearchError,
    ConfigError,
    StorageError,
    raise_together,
)
from circuitsearch.core.files import write_json
from circuitsearch.students.decoding import answer_limits
from circuitsearch.students.export.graphs import DecoderGraph, EncoderGraph, remembering
from circuitsearch.teacher.answering import decoding_problems
from circuitsearch.teacher.loading import Teacher

__all__ = ["OPSET", "OPSETS", "export_onnx"]

OPSET = 20
"""Opset of the graphs; every onnxruntime from 1.17 on runs it."""
OPSETS = range(18, 24)
"""Opsets that can be asked for."""

_FORMAT = "circuitsearch onnx 1"  # onnx_answers.FORMAT; that module needs onnxruntime
_ONE_FILE = 2**31 - 2**24
_SCRIPT = "answer_onnx.py"
_TOKENIZER = "tokenizer.json"


def export_onnx(teacher: Teacher, folder: str | Path, *, opset: int = OPSET) -> Path:
    """Write a checkpoint as ONNX files.

    Args:
        teacher: the checkpoint, a student's too, as `load_teacher` gives it.
        folder: where to write; an older export in it is replaced.
        opset: of the graphs, one of `OPSETS`.

    Returns:
        The folder.

    Raises:
        ConfigError: onnx is not installed, the opset is unknown, or the checkpoint asks for
            something that plain greedy decoding or its script do not do; all faults together.
        CircuitSearchError: torch cannot express the model as ONNX.
        StorageError: the folder cannot be written.
    """
    _check(teacher, opset)
    target = Path(folder).resolve()  # `.` has no name of its own
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir(parents=True)
        graphs = _write_graphs(teacher, temporary, opset)
        teacher.processor.tokenizer.backend_tokenizer.save(str(temporary / _TOKENIZER))
        shutil.copyfile(Path(__file__).with_name("answers.py"), temporary / _SCRIPT)
        write_json(temporary / "manifest.json", _manifest(teacher, graphs, opset))
        target.mkdir(parents=True, exist_ok=True)
        for stale in target.glob("*.onnx.data"):
            stale.unlink()
        # the manifest comes last: a folder that has it is complete
        for file in sorted(temporary.iterdir(), key=lambda path: path.name == "manifest.json"):
            file.replace(target / file.name)
    except OSError as error:
        raise StorageError(
            f"Cannot write the export to {str(target)!r}: {error}. "
            "Check that the folder is writable and has free space."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _check(teacher: Teacher, opset: int) -> None:
    """Refuse what cannot be exported; all faults together."""
    problems = []
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ImportError:
            problems.append(
                f"the package {package} is missing; pip install 'circuitsearch[export]'"
            )
    if opset not in OPSETS:
        problems.append(f"opset: got {opset}, allowed are {OPSETS[0]} to {OPSETS[-1]}")
    problems += decoding_problems(teacher.model.generation_config)
    images = teacher.processor.image_processor
    if getattr(images, "do_center_crop", False):
        problems.append("the image processor crops pages, which the exported files do not")
    raise_together(problems, ConfigError, f"Exporting {teacher.name!r}")


def _write_graphs(teacher: Teacher, folder: Path, opset: int) -> dict[str, Any]:
    """Write both graphs; return what the manifest says about them."""
    model = teacher.model
    size = teacher.processor.image_processor.size
    own, page = (remembering(model.decoder, kind) for kind in (Kind.SELF, Kind.CROSS))
    encoder, decoder = EncoderGraph(model).eval(), DecoderGraph(model.decoder).eval()
    pixels = torch.zeros(2, 3, size["height"], size["width"])
    seen = teacher.shape.encoder
    # examples of unlike sizes, none of them 1: torch takes those for constants
    states = torch.zeros(2, seen.tokens, seen.width)
    past, read = (
        [torch.zeros(2, heads, length, width) for heads, width in found.values() for _ in range(2)]
        for found, length in ((own, 5), (page, seen.tokens))
    )
    ids, positions = torch.full((2, 3), teacher.tokens.pad_id), torch.arange(5, 8)
    batch, tokens, before = (torch.export.Dim(name) for name in ("batch", "tokens", "past"))
    owned = [f"{one}.{part}" for one in own for part in ("keys", "values")]
    paged = [f"{one}.{part}" for one in page for part in ("keys", "values")]
    _write_graph(
        encoder,
        (pixels,),
        ({0: batch},),
        folder / "encoder.onnx",
        opset,
        ["pixel_values"],
        ["states", *paged],
    )
    _write_graph(
        decoder,
        (ids, positions, past, read),
        (
            {0: batch, 1: tokens},
            {0: tokens},
            [{0: batch, 2: before} for _ in past],
            [{0: batch} for _ in read],
        ),
        folder / "decoder.onnx",
        opset,
        ["ids", "positions", *owned, *paged],
        ["logits", *(f"{name}.new" for name in owned)],
    )
    return _described(
        pixels,
        states,
        dict(zip(owned, past, strict=True)),
        dict(zip(paged, read, strict=True)),
        model,
    )


def _write_graph(
    graph: nn.Module,
    example: tuple[Any, ...],
    dynamic: tuple[Any, ...],
    path: Path,
    opset: int,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Trace a module with `torch.export` and write it."""
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    try:
        with torch.no_grad(), _quiet():
            program: Any = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=opset,
                verbose=False,
            )
            _strip(program.model)
            program.save(path, external_data=size > _ONE_FILE)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CircuitSearchError(
            f"{path.name}: torch cannot write it at opset {opset} ({reason}); try --opset {OPSET}"
        ) from error


def _strip(model: Any) -> None:
    """Take out where each node came from: source lines and folders of this machine."""
    model.metadata_props.clear()
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        graph.metadata_props.clear()
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in (*node.inputs, *node.outputs):
                if value is not None:
                    value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about its own workings; faults are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _described(
    pixels: torch.Tensor,
    states: torch.Tensor,
    own: Mapping[str, torch.Tensor],
    page: Mapping[str, torch.Tensor],
    model: Any,
) -> dict[str, Any]:
    """Return files, inputs and outputs of both graphs; words stand for what may vary."""

    def part(name: str, kind: str, *shape: int | str) -> dict[str, Any]:
        return {"name": name, "type": kind, "shape": list(shape)}

    def cached(named: Mapping[str, torch.Tensor], length: str | None, end: str = "") -> list[Any]:
        return [
            part(name + end, "float32", "batch", one.shape[1], length or one.shape[2], one.shape[3])
            for name, one in named.items()
        ]

    encoder = {
        "file": "encoder.onnx",
        "inputs": [part("pixel_values", "float32", "batch", *pixels.shape[1:])],
        "outputs": [part("states", "float32", "batch", *states.shape[1:]), *cached(page, None)],
    }
    decoder = {
        "file": "decoder.onnx",
        "inputs": [
            part("ids", "int64", "batch", "tokens"),
            part("positions", "int64", "tokens"),
            *cached(own, "past"),
            *cached(page, None),
        ],
        "outputs": [
            part("logits", "float32", "batch", model.decoder.lm_head.out_features),
            *cached(own, "past + tokens", ".new"),
        ],
    }
    return {"encoder": encoder, "decoder": decoder}


def _manifest(teacher: Teacher, graphs: Mapping[str, Any], opset: int) -> dict[str, Any]:
    """Return everything that answering needs beside the graphs and the tokenizer."""
    tokens = teacher.tokens
    limits = answer_limits(teacher.model.generation_config, tokens)
    images = teacher.processor.image_processor
    return {
        "format": _FORMAT,
        "model": {
            "name": teacher.name,
            "fingerprint": teacher.fingerprint,
            "plan": getattr(teacher.model.decoder.config, "plan_text", None),
        },
        "opset": opset,
        "graphs": graphs,
        "tokenizer": {"file": _TOKENIZER, "clean_up": _cleans_up(tokens.tokenizer)},
        "prompt": {
            "template": tokens.prompt.template,
            "lowercase_question": tokens.prompt.lowercase_question,
            "parses": tokens.prompt.parses,
            "empty_ids": tokens.prompt_ids(""),
        },
        "limits": {
            "length": limits.length,
            "ends": sorted(limits.ends),
            "forbidden": sorted(limits.forbidden),
        },
        "image": {
            "height": images.size["height"],
            "width": images.size["width"],
            "align_long_axis": bool(images.do_align_long_axis),
            "resize": bool(images.do_resize),
            "thumbnail": bool(images.do_thumbnail),
            "pad": bool(images.do_pad),
            "resample": int(images.resample),
            "rescale": float(images.rescale_factor) if images.do_rescale else None,
            "mean": list(images.image_mean) if images.do_normalize else None,
            "std": list(images.image_std) if images.do_normalize else None,
        },
    }


def _cleans_up(tokenizer: Any) -> bool:
    """Return whether decoded text is cleaned up: transformers never does it for BPE."""
    wanted = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    return wanted and (not bpe or bool(getattr(tokenizer, forced, False)))
