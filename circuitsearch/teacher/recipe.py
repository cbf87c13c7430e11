"""The small Donut that circuitsearch ships: its sizes, tokenizer and processor, from scratch.

Stock Hugging Face classes throughout: `VisionEncoderDecoderModel` of a `DonutSwinModel` and a
four-layer pre-LN `MBartForCausalLM`, a `PreTrainedTokenizerFast` with Donut's task tokens, and
Donut's image processor. Tokens are characters, so the open vocabularies of the synthetic pages
need no merges and one-character answers are one token.

Two choices differ from donut-base beyond size, both because plain training of so small a model
from random weights stalls on a language-model plateau: weights start with standard deviation 0.08
instead of 0.02, and one encoder token covers 8 px, about one character of 11-13 px type.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import (
    DonutSwinConfig,
    DonutSwinModel,
    GenerationConfig,
    MBartConfig,
    MBartForCausalLM,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderModel,
)
from transformers.models.donut.image_processing_pil_donut import DonutImageProcessorPil
from transformers.models.donut.processing_donut import DonutProcessor

from circuitsearch.core.files import open_to_umask

from .documents.render import PAGE_HEIGHT, PAGE_WIDTH
from .loading import quiet_transformers

__all__ = ["TASK_TOKENS", "Sizes", "new_model", "new_processor", "save_checkpoint"]

TASK_TOKENS = ("<s_docvqa>", "<s_question>", "</s_question>", "<s_answer>", "</s_answer>")
"""Donut's DocVQA task tokens."""

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " "


@dataclass(frozen=True)
class Sizes:
    """Dimensions of the small Donut (defaults: the shipped teacher).

    Attributes:
        height: Image height in pixels.
        width: Image width in pixels.
        patch: Side of a Swin patch in pixels; every stage after the first doubles it.
        embed: Width of the first Swin stage; it doubles per stage, the last is the encoder width.
        depths: Blocks per stage.
        encoder_heads: Attention heads per stage.
        window: Side of a Swin attention window in tokens.
        layers: Decoder layers.
        d_model: Decoder width.
        heads: Decoder attention heads.
        ffn: Decoder feed-forward width.
        max_length: Longest decoder sequence, prompt included.
        init_std: Standard deviation of the initial weights.
    """

    height: int = PAGE_HEIGHT
    width: int = PAGE_WIDTH
    patch: int = 4
    embed: int = 64
    depths: tuple[int, ...] = (2, 2)
    encoder_heads: tuple[int, ...] = (4, 8)
    window: int = 4
    layers: int = 4
    d_model: int = 128
    heads: int = 8
    ffn: int = 512
    max_length: int = 128
    init_std: float = 0.08


def new_processor(sizes: Sizes) -> DonutProcessor:
    """Return the image processor and character tokenizer of a small Donut."""
    vocabulary = {token: i for i, token in enumerate(_SPECIAL)}
    vocabulary.update({c: len(_SPECIAL) + i for i, c in enumerate(_CHARACTERS)})
    # BPE without merges is a character tokenizer that falls back to <unk>
    base = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    base.decoder = decoders.Fuse()
    base.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=sizes.max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(TASK_TOKENS)})
    images = DonutImageProcessorPil(
        size={"height": sizes.height, "width": sizes.width},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_align_long_axis=False,
    )
    return DonutProcessor(image_processor=images, tokenizer=tokenizer)


def new_model(sizes: Sizes, tokenizer: PreTrainedTokenizerFast) -> VisionEncoderDecoderModel:
    """Return an untrained small Donut; the caller seeds torch's generator."""
    encoder = DonutSwinModel(
        DonutSwinConfig(
            image_size=[sizes.height, sizes.width],
            patch_size=sizes.patch,
            num_channels=3,
            embed_dim=sizes.embed,
            depths=list(sizes.depths),
            num_heads=list(sizes.encoder_heads),
            window_size=sizes.window,
            drop_path_rate=0.0,
            initializer_range=sizes.init_std,
        )
    )
    start = tokenizer.convert_tokens_to_ids(TASK_TOKENS[0])
    decoder = MBartForCausalLM(
        MBartConfig(
            vocab_size=len(tokenizer),
            d_model=sizes.d_model,
            decoder_layers=sizes.layers,
            decoder_attention_heads=sizes.heads,
            decoder_ffn_dim=sizes.ffn,
            max_position_embeddings=sizes.max_length,
            is_decoder=True,
            add_cross_attention=True,
            scale_embedding=True,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            init_std=sizes.init_std,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=start,
            forced_eos_token_id=None,
        )
    )
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.decoder_start_token_id = start
    model.generation_config = GenerationConfig(
        max_length=sizes.max_length,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=start,
        bad_words_ids=[[tokenizer.unk_token_id]],
    )
    return model


def save_checkpoint(
    model: VisionEncoderDecoderModel, processor: DonutProcessor, folder: Path
) -> None:
    """Write the model (safetensors), tokenizer and image processor into a folder."""
    with quiet_transformers():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        open_to_umask(weights)
