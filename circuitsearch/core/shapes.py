"""Shapes: the sizes from which every analytic cost follows; weights are never needed.

A `TeacherShape` is a name, the decoder's sizes and what the frozen encoder costs. The encoder of
Donut is a Swin transformer (Liu et al. 2021): a patch embedding, stages of window attention and
feed-forward blocks, and a merge of 2x2 tokens between stages. `swin_encoder_shape` counts its
parameters (equal to `DonutSwinModel` without its unused pooler) and its multiply-adds per page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from circuitsearch.core.errors import (
    ConfigError,
    DataError,
    choice_problem,
    integer_problems,
    raise_together,
)
from circuitsearch.core.files import record_fields

__all__ = [
    "KNOWN_SHAPES",
    "DecoderShape",
    "EncoderShape",
    "TeacherShape",
    "known_shape",
    "patch_grid",
    "swin_encoder_shape",
]


def patch_grid(height: int, width: int, tokens: int) -> tuple[int, int] | None:
    """Return rows and columns of the square patches that encoder tokens stand for.

    Args:
        height: of the encoder's input in pixels.
        width: of the same.
        tokens: number of encoder tokens.

    Returns:
        None where so many square patches do not tile the input.
    """
    side = round((height * width / tokens) ** 0.5)
    if side * side * tokens != height * width or height % side or width % side:
        return None
    return height // side, width // side


def _size_problems(sizes: Mapping[str, object], least: Mapping[str, int]) -> list[str]:
    """Describe the sizes that are no integers, or below their least value (1 by default)."""
    return [
        problem
        for name, value in sizes.items()
        for problem in integer_problems(name, value, least.get(name, 1))
    ]


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a pre-LN decoder: self-attention, feed-forward, cross-attention where it has one.

    The last three attributes keep their defaults in the mBART family. `to_json` leaves defaults
    out, so that a shape's files and hashes do not depend on attributes that say nothing about it.

    Attributes:
        layers: number of layers.
        d_model: width of the residual stream.
        heads: query heads of one attention.
        head_dim: width of one head.
        ffn: neurons of one feed-forward.
        vocabulary: rows of the token embedding.
        encoder_width: width that cross-attention's k and v read, 0 when the decoder has no
            cross-attention.
        positions: rows of the learned position table (130 in Donut: 128 + an offset of 2), 0 when
            the decoder has none.
        groups: key-value heads of one attention, each read by heads / groups heads; None when
            every head has its own (given as that number, it is held as None).
        gated: whether the feed-forward multiplies its neurons by a second map of its input.
        tied: whether the output projection is the token embedding.
    """

    layers: int
    d_model: int
    heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    encoder_width: int
    positions: int = 0
    groups: int | None = None
    gated: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        """Refuse impossible sizes, all faults together; hold full groups as None."""
        flags = {"gated": self.gated, "tied": self.tied}
        sizes = {name: size for name, size in vars(self).items() if name not in flags}
        if self.groups is None:
            del sizes["groups"]
        problems = _size_problems(sizes, {"positions": 0, "encoder_width": 0})
        problems += [
            f"{name}: got {flag!r}, allowed are True and False"
            for name, flag in flags.items()
            if not isinstance(flag, bool)
        ]
        if not problems and self.groups is not None and self.heads % self.groups:
            problems.append(
                f"groups: got {self.groups}, allowed are divisors of the {self.heads} heads"
            )
        raise_together(problems, ConfigError, "Decoder shape")
        if self.groups == self.heads:
            object.__setattr__(self, "groups", None)

    def to_json(self) -> dict[str, Any]:
        """Return the sizes by name, without `groups`, `gated` and `tied` where they are default."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in _SAID_WHEN_UNUSUAL or getattr(self, field.name) != field.default
        }


_SAID_WHEN_UNUSUAL = ("groups", "gated", "tied")
"""Attributes of a decoder that files hold only where they differ from the mBART family's."""


@dataclass(frozen=True)
class EncoderShape:
    """What the encoder costs per page and what it hands to the decoder.

    Attributes:
        parameters: exact number of parameters, a projection to the decoder's width included.
        macs: multiply-adds for one page.
        tokens: encoder tokens per page (N in the formulas).
        width: width of the encoder's output states.
    """

    parameters: int
    macs: int
    tokens: int
    width: int

    def __post_init__(self) -> None:
        """Refuse negative costs and empty outputs; all faults together."""
        problems = _size_problems(vars(self), {"parameters": 0, "macs": 0})
        raise_together(problems, ConfigError, "Encoder shape")


@dataclass(frozen=True)
class TeacherShape:
    """Everything that the cost of a plan depends on, beside the length of the generation.

    Attributes:
        name: the teacher's name in reports.
        decoder: sizes of the decoder.
        encoder: cost and output size of the encoder.
    """

    name: str
    decoder: DecoderShape
    encoder: EncoderShape

    def to_json(self) -> dict[str, Any]:
        """Return the shape as nested JSON objects; `from_json` reads it back."""
        return {**asdict(self), "decoder": self.decoder.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> TeacherShape:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown.
            ConfigError: a size is impossible.
        """
        values = record_fields(cls, data)
        if not isinstance(values["name"], str):
            raise DataError(f"Reading a TeacherShape: name is {values['name']!r}, expected text")
        return cls(
            name=values["name"],
            decoder=DecoderShape(**record_fields(DecoderShape, values["decoder"])),
            encoder=EncoderShape(**record_fields(EncoderShape, values["encoder"])),
        )


def swin_encoder_shape(
    *,
    image_height: int,
    image_width: int,
    patch: int,
    embed: int,
    depths: Sequence[int],
    heads: Sequence[int],
    window: int,
    channels: int = 3,
) -> EncoderShape:
    """Count a Swin encoder as transformers builds it for Donut (MLP ratio 4, no final LayerNorm).

    Attention runs on the grid padded to whole windows and the padding is paid for; the
    feed-forward runs on the grid itself. Normalisations, biases, softmax and relative-position
    additions are not multiply-adds of a matrix product and are left out, as torch's counter does.

    Args:
        image_height: input rows, in pixels.
        image_width: input columns, in pixels.
        patch: side of a patch in pixels.
        embed: width of the first stage; every following stage doubles it.
        depths: blocks per stage.
        heads: attention heads per stage (they set the size of the position-bias tables).
        window: side of an attention window in tokens.
        channels: image channels.

    Raises:
        ConfigError: a size is impossible, or a grid is smaller than a window (which
            `DonutSwinModel` cannot run); all faults together.
    """
    sizes = {
        "image_height": image_height,
        "image_width": image_width,
        "patch": patch,
        "embed": embed,
        "window": window,
        "channels": channels,
        **{f"depths[{stage}]": depth for stage, depth in enumerate(depths)},
        **{f"heads[{stage}]": count for stage, count in enumerate(heads)},
    }
    problems = _size_problems(sizes, {})
    if len(depths) != len(heads) or not depths:
        problems.append(f"depths {list(depths)} and heads {list(heads)} must be equally long")
    raise_together(problems, ConfigError, "Swin encoder")

    first = (-(-image_height // patch), -(-image_width // patch))
    grids = _swin_grids(first, embed, heads, window)
    projection = channels * patch**2 * embed
    parameters = projection + embed + 2 * embed  # convolution, its bias, LayerNorm
    macs = projection * grids[0][0] * grids[0][1]
    for stage, (height, width) in enumerate(grids):
        c = embed * 2**stage
        if stage > 0:
            # The merge reads 2 x 2 tokens of c/2, that is 2c, and writes c: no bias, LayerNorm(2c).
            parameters += 2 * c * c + 2 * 2 * c
            macs += 2 * c * c * height * width
        parameters += depths[stage] * _block_parameters(c, heads[stage], window)
        macs += depths[stage] * _block_macs(c, height, width, window)
    return EncoderShape(parameters=parameters, macs=macs, tokens=height * width, width=c)


def _swin_grids(
    first: tuple[int, int], embed: int, heads: Sequence[int], window: int
) -> list[tuple[int, int]]:
    """Return the token grid of every stage; refuse what `DonutSwinModel` cannot build or run."""
    grids = [first]
    for _ in heads[1:]:
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))
    problems = []
    for stage, (height, width) in enumerate(grids):
        c = embed * 2**stage
        if min(height, width) < window:
            problems.append(
                f"stage {stage} has {height} x {width} tokens, less than one window of {window}; "
                "take larger images or a smaller window"
            )
        if c % heads[stage]:
            problems.append(f"stage {stage}: its width {c} is no multiple of {heads[stage]} heads")
    raise_together(problems, ConfigError, "Swin encoder")
    return grids


def _block_parameters(c: int, heads: int, window: int) -> int:
    """Count one Swin block of width c: q, k, v, out, feed-forward, two LayerNorms, bias table."""
    attention = 4 * (c * c + c) + heads * (2 * window - 1) ** 2
    feed_forward = (4 * c * c + 4 * c) + (4 * c * c + c)
    return attention + feed_forward + 2 * 2 * c


def _block_macs(c: int, height: int, width: int, window: int) -> int:
    """Count the multiply-adds of one Swin block of width c on a height x width grid."""
    padded = (-(-height // window) * window) * (-(-width // window) * window)
    attention = 4 * c * c * padded + 2 * c * window * window * padded
    return attention + 8 * c * c * height * width


def known_shape(name: str) -> TeacherShape:
    """Return a published teacher's shape without loading it.

    `donut-base` is `naver-clova-ix/donut-base-finetuned-docvqa` at 2560 x 1920 pixels.

    Raises:
        ConfigError: no shape of that name is recorded.
    """
    if name not in _KNOWN:
        raise ConfigError(choice_problem("Known shape", name, list(_KNOWN)))
    sizes = _KNOWN[name]
    return TeacherShape(
        name=name,
        decoder=DecoderShape(**sizes["decoder"]),
        encoder=swin_encoder_shape(**sizes["encoder"]),
    )


_KNOWN: dict[str, dict[str, dict[str, Any]]] = {
    "donut-base": {
        "decoder": {
            "layers": 4,
            "d_model": 1024,
            "heads": 16,
            "head_dim": 64,
            "ffn": 4096,
            "vocabulary": 57_532,
            "encoder_width": 1024,
            "positions": 130,
        },
        "encoder": {
            "image_height": 2560,
            "image_width": 1920,
            "patch": 4,
            "embed": 128,
            "depths": (2, 2, 14, 2),
            "heads": (4, 8, 16, 32),
            "window": 10,
        },
    },
}

KNOWN_SHAPES = tuple(_KNOWN)
"""Names that `known_shape` accepts."""
