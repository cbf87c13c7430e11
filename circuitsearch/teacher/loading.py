"""Loading a teacher: a Hugging Face document model and all that it takes to question and score it.

A `Teacher` bundles the frozen model, its processor, its prompt, its residual-stream view, its shape
(for costs) and a fingerprint (for every key that depends on it). All settings come from the
checkpoint's files; see `checkpoint`. Loading a local folder uses no network, and never pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.core.shapes import EncoderShape, TeacherShape, swin_encoder_shape

from .checkpoint import (
    check_files,
    find_checkpoint,
    fingerprint,
    read_max_length,
    read_options,
    read_prompt,
)
from .decoders import ResidualDecoder, residual_decoder
from .tokens import PromptFormat, TeacherTokens

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PromptFormat", "Teacher", "load_teacher", "quiet_transformers", "teacher_shape"]


@dataclass(frozen=True)
class Teacher:
    """A trained document model, ready to be asked and taken apart.

    Attributes:
        name: the name it was loaded under.
        model: `VisionEncoderDecoderModel` in evaluation mode, parameters frozen.
        processor: `DonutProcessor` (image processor and tokenizer).
        prompt: how a question becomes a prompt.
        tokens: prompt and tokenizer as collation and generation need them.
        decoder: residual-stream view of the model's decoder.
        shape: sizes and encoder cost.
        fingerprint: hash of the checkpoint's content.
        max_length: longest decoder sequence in tokens, prompt included.
    """

    name: str
    model: Any
    processor: Any
    prompt: PromptFormat
    tokens: TeacherTokens
    decoder: ResidualDecoder
    shape: TeacherShape
    fingerprint: str
    max_length: int

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device  # type: ignore[no-any-return]

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Return [P, 3, height, width] on the model's device, by the checkpoint's settings."""
        rgb = [image.convert("RGB") for image in images]
        processed = self.processor.image_processor(rgb, return_tensors="pt")
        pixels: Tensor = processed["pixel_values"]
        return pixels.to(self.device, self.model.dtype)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Return [P, N, E], the states that the decoder's cross-attention reads, without gradients.

        Where encoder and decoder widths differ, the model's projection (`enc_to_dec_proj`) is
        applied, so E is always the width that the decoder expects.
        """
        with torch.no_grad():
            states: Tensor = self.model.encoder(pixel_values=pixel_values).last_hidden_state
            projection = getattr(self.model, "enc_to_dec_proj", None)
            return states if projection is None else projection(states)


def load_teacher(name_or_folder: str, device: str = "cpu") -> Teacher:
    """Load a teacher.

    Args:
        name_or_folder: `shipped`, a checkpoint folder, or a Hugging Face name.
        device: torch device, e.g. `cpu` or `cuda`.

    Raises:
        ConfigError: the teacher is missing, incomplete, or not a document model that can be
            searched.
    """
    place = _device(device)
    folder = find_checkpoint(str(name_or_folder))
    config = check_files(folder)
    options = read_options(folder)
    processor = _processor(folder)
    model = _model(folder)
    decoder = residual_decoder(model)
    tokenizer = processor.tokenizer
    start = config.get("decoder_start_token_id")
    if start is None:
        start = config.get("decoder", {}).get("decoder_start_token_id")
    prompt = read_prompt(folder, tokenizer, start, options)
    positions = model.decoder.config.max_position_embeddings
    max_length = read_max_length(folder, positions, options)
    tokens = TeacherTokens.of(tokenizer, max_length, prompt)
    _settle_ids(folder, model, tokens)
    size = processor.image_processor.size
    return Teacher(
        name=str(name_or_folder),
        model=model.to(place),
        processor=processor,
        prompt=prompt,
        tokens=tokens,
        decoder=decoder,
        shape=teacher_shape(model, (size["height"], size["width"]), name=str(name_or_folder)),
        fingerprint=fingerprint(folder),
        max_length=max_length,
    )


def teacher_shape(model: Any, image_size: tuple[int, int], name: str = "teacher") -> TeacherShape:
    """Return the sizes from which every cost follows.

    Args:
        model: a `VisionEncoderDecoderModel`.
        image_size: (height, width) of its input in pixels.
        name: the teacher's name in reports.

    Returns:
        The shape; encoder parameters are counted exactly, a projection between encoder and decoder
        included.

    Raises:
        ConfigError: the decoder has no residual view.
    """
    encoder = model.encoder
    shape = _encoder_shape(encoder, image_size)
    shape = replace(shape, parameters=sum(p.numel() for p in encoder.parameters()))
    projection = getattr(model, "enc_to_dec_proj", None)
    if projection is not None:
        shape = EncoderShape(
            parameters=shape.parameters + sum(p.numel() for p in projection.parameters()),
            macs=shape.macs + shape.tokens * projection.weight.numel(),
            tokens=shape.tokens,
            width=projection.out_features,
        )
    return TeacherShape(name=name, decoder=residual_decoder(model).shape, encoder=shape)


def _encoder_shape(encoder: Any, image_size: tuple[int, int]) -> EncoderShape:
    """Count a Swin encoder by formula, any other one by running it without data."""
    config = encoder.config
    if config.model_type == "donut-swin" and config.mlp_ratio == 4:
        return swin_encoder_shape(
            image_height=image_size[0],
            image_width=image_size[1],
            patch=config.patch_size,
            embed=config.embed_dim,
            depths=tuple(config.depths),
            heads=tuple(config.num_heads),
            window=config.window_size,
            channels=config.num_channels,
        )
    return _counted_shape(encoder, image_size)


def _counted_shape(encoder: Any, image_size: tuple[int, int]) -> EncoderShape:
    """Count multiply-adds with torch's counter on a copy without weights (meta device, eager)."""
    from copy import deepcopy

    from torch.utils.flop_counter import FlopCounterMode

    config = deepcopy(encoder.config)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        blank = type(encoder)(config).eval()
        pixels = torch.empty(1, config.num_channels, *image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        states = blank(pixel_values=pixels).last_hidden_state
    return EncoderShape(
        parameters=0,
        macs=counter.get_total_flops() // 2,  # the counter charges two operations per multiply-add
        tokens=states.shape[1],
        width=states.shape[2],
    )


def _device(name: str) -> torch.device:
    """Return a usable device."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        fits = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise ConfigError(
            f"Device {name!r} cannot be used here; allowed on this machine are {', '.join(fits)}"
        ) from error
    return device


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and loading tables; faults are raised, not printed."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _model(folder: Path) -> Any:
    """Load the weights in float32, complete or not at all."""
    from safetensors import SafetensorError
    from transformers import VisionEncoderDecoderModel as Untyped

    family: Any = Untyped
    where = f"Teacher folder {str(folder)!r}"
    try:
        with quiet_transformers():
            model, report = family.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ConfigError(
            f"{where}: transformers cannot load it ({type(error).__name__}: {error}). Check that "
            "it is a complete copy of a checkpoint that this version of transformers knows"
        ) from error
    # transformers fills missing tensors with random numbers and only warns
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"{where}: {len(missing)} tensors are missing from the weights, e.g. {missing[0]}; "
            "fetch the checkpoint again"
        )
    return model.eval().requires_grad_(False)


def _processor(folder: Path) -> Any:
    """Load tokenizer and image processor (the Pillow one: torchvision is not needed)."""
    from transformers import AutoTokenizer
    from transformers.models.donut.image_processing_pil_donut import DonutImageProcessorPil
    from transformers.models.donut.processing_donut import DonutProcessor as Untyped

    family: Any = Untyped
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            values, _ = DonutImageProcessorPil.get_image_processor_dict(
                folder, local_files_only=True
            )
            kind = str(values.get("image_processor_type", values.get("feature_extractor_type", "")))
            images = DonutImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception on malformed files
        raise ConfigError(
            f"Teacher folder {str(folder)!r}: tokenizer or image processor cannot be loaded "
            f"({type(error).__name__}: {error}); fetch the checkpoint again"
        ) from error
    if not kind.startswith("Donut"):
        raise ConfigError(
            f"Teacher folder {str(folder)!r}: the image processor is {kind or 'not named'}, "
            "allowed is Donut's (DonutImageProcessor); give a Donut checkpoint"
        )
    return family(image_processor=images, tokenizer=tokenizer)


def _settle_ids(folder: Path, model: Any, tokens: TeacherTokens) -> None:
    """Check special ids against the tokenizer and fill in those that config.json leaves open.

    The unknown token is no text and never an answer (Donut forbids it, too): where the checkpoint
    does not forbid it, every way to answer does, a student's and ONNX's too.
    """
    problems = []
    rows = model.decoder.get_input_embeddings().num_embeddings
    largest = max(tokens.tokenizer.get_vocab().values())
    if largest >= rows:
        problems.append(f"the tokenizer's largest id is {largest}, the embedding has {rows} rows")
    start = tokens.prompt_ids("")[0]
    for name, wanted in (("pad_token_id", tokens.pad_id), ("eos_token_id", tokens.eos_id)):
        stated = getattr(model.config, name, None)
        if stated not in (None, wanted):
            problems.append(f"config.json says {name} {stated}, the tokenizer says {wanted}")
    raise_together(problems, ConfigError, f"Teacher folder {str(folder)!r}")
    for holder in (model.config, model.generation_config):
        holder.pad_token_id, holder.eos_token_id = tokens.pad_id, tokens.eos_id
        holder.decoder_start_token_id = start
    unknown = tokens.tokenizer.unk_token_id
    words = list(model.generation_config.bad_words_ids or ())
    if unknown is not None and [unknown] not in words:
        model.generation_config.bad_words_ids = [*words, [unknown]]
