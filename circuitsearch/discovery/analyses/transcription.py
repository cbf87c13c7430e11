"""Whether encoder states are text already (Donut-MINT, arXiv 2509.26235, Prop. 1 and Fig. 4).

The transcription lens sends an encoder state through value and output projection of the last
cross-attention and the output matrix, attention and norms left out, and takes the likeliest token.
On rendered pages the text of every patch is known, so the picture of figure 4 becomes a share of
patches that are read right: with all heads, with as many as the paper keeps by its head statistic,
with random ones. The paper says in one place that the chosen heads have the lowest variance and in
another that low variance marks heads to drop, so both orders are measured.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from circuitsearch.core.components import Head, Kind
from circuitsearch.core.files import seed_from
from circuitsearch.core.findings import Cell, Finding, Table

from ..lens.attended import attended_reading
from ..lens.head_table import HeadOptions
from ..lens.heads import head_statistics
from ..lens.transcription import LensNorm, TranscriptionOptions, transcribe
from .material import Material
from .measures.printed import Printed, fitted_map, printed_on
from .shared import counted, mean_interval, share_interval
from .tables.transcription import ORDERS, Choices, Lens, Patches, Reads, chart, percent, tables
from .tables.transcription_verdicts import verdicts

__all__ = ["transcription_analysis"]

_SHARE = 6 / 16
"""Share of the heads that the paper keeps for its clearer transcription."""

_DRAWS = 20
"""Random orders of heads; their choices of a number of heads that agree count once."""

_NORMS: tuple[LensNorm, ...] = ("none", "final")

_ASKS = (
    "A cross-attention head looks at patches of the page and copies something of them into the "
    "text that is being written. Has the encoder turned pixels into characters before that, so "
    "that the decoder only picks patches, or does the decoder still have to recognise them? In the "
    "first case a student needs little more than the heads that pick and copy."
)
_METHOD = (
    "Each encoder token goes straight through value projection and output projection of {last} and "
    "the output matrix (the transcription lens); its likeliest token is right if it is printed on "
    "the patch. Patches without text are left out. Chosen heads: {kept} of {count}, the share that "
    "the paper keeps, by the variance of their attention over the page at rows that predict an "
    "answer token; highest variance is the default reading and is judged, lowest is the other one. "
    "Random: mean over {draws} choices of as many heads. The norm in front of the output matrix is "
    "left out as in the paper, and put in for comparison. Retrieval: what the heads write where an "
    "answer token is due, attention included, read by the same lens; right if it is that token. "
    "Intervals (95 %) draw documents."
)
_NOTES = (
    "The fitted linear map is a lower bound on what the states hold linearly: more pages to fit it "
    "on could only raise it.",
    "The shipped teacher's encoder was trained with a further loss that asks each patch for its "
    "characters: that they are linearly there says little about other encoders.",
)


def transcription_analysis(material: Material) -> Finding:
    """Read every patch through the last cross-attention and compare with what is printed there.

    Returns:
        A finding with `values["accuracy"]`, the share of patches that all heads read right (None
        where the text of patches is unknown), `values["linear"]`, that of a linear map fitted on
        other pages, and `values["heads"]`, the chosen heads of highest variance.
    """
    seed = seed_from("transcription", material.sample.fingerprint, material.seed)
    choices = _choices(material)
    retrieved = _retrieved(material, choices)
    printed = printed_on(material.teacher, material.pages, material.sample)
    known = None if isinstance(printed, str) else _patches(material, choices, printed, seed)
    return Finding(
        analysis="transcription",
        title="Is the page text already when the decoder reads it?",
        asks=_ASKS,
        method=_METHOD.format(
            last=choices.sublayer,
            kept=choices.kept,
            count=len(choices.order),
            draws=len(choices.of("random", choices.kept)),
        ),
        examples=material.sample.examples,
        tables=(
            *(tables(known, choices) if known else (_entropies(material, choices, seed),)),
            _retrieval(retrieved, choices.sublayer, seed),
        ),
        charts=(chart(known, choices),) if known else (),
        verdicts=verdicts(choices, retrieved, known or str(printed), seed),
        notes=_NOTES,
        values={
            "accuracy": _mean(known.own) if known else None,
            "linear": _mean(known.fitted) if known else None,
            "heads": list(choices.of(ORDERS[0], choices.kept)[0]),
        },
    )


def _choices(material: Material) -> Choices:
    """Order the heads of the last cross-attention, and draw random orders of them."""
    # raw entropies: no row of self-attention may stop what is about cross-attention
    options = HeadOptions(entropy_norm="none")
    table = head_statistics(material.view, material.sample, options, progress=material.progress)
    heads = [(Head.parse(entry.head), entry.value) for entry in table.heads]
    last = max(head.sublayer for head, _ in heads if head.sublayer.kind is Kind.CROSS)
    variances = {head.index: value for head, value in heads if head.sublayer == last}
    order = tuple(sorted(variances, key=lambda head: (-variances[head], head)))
    seed = seed_from("transcription heads", material.sample.fingerprint, material.seed)
    drawn = random.Random(seed)
    draws = tuple(tuple(drawn.sample(sorted(order), len(order))) for _ in range(_DRAWS))
    return Choices(last.name, variances, order, draws, max(1, round(_SHARE * len(order))))


def _patches(material: Material, choices: Choices, printed: Printed, seed: int) -> Patches:
    """Read the patches with text through every cross-attention, and through choices of heads."""
    view, name, counts = material.view, choices.sublayer, range(1, len(choices.order) + 1)
    crosses = [one.name for one in view.sublayers if one.kind is Kind.CROSS]

    def read(order: str, count: int, norm: LensNorm) -> np.ndarray:
        found = [printed.read(view, name, heads, norm) for heads in choices.of(order, count)]
        material.progress(f"transcription, {order}", count, len(choices.order))
        return np.array(found)

    others = printed_on(material.teacher, material.others, material.other_sample)
    fit_on = None if isinstance(others, str) else others
    return Patches(
        documents=printed.documents,
        lenses=tuple(_lens(material, printed, cross, norm) for cross in crosses for norm in _NORMS),
        chosen={
            (order, norm): read(order, choices.kept, norm) for order in ORDERS for norm in _NORMS
        },
        curve={order: tuple(read(order, count, "none") for count in counts) for order in ORDERS},
        single={head: printed.read(view, name, [head]) for head in sorted(choices.order)},
        commonest=printed.commonest(),
        fitted=None if fit_on is None else fitted_map(printed, fit_on),
        fitted_on=0 if fit_on is None else len(fit_on.tokens),
        seed=seed,
    )


def _lens(material: Material, printed: Printed, cross: str, norm: LensNorm) -> Lens:
    """Read all patches of all pages with every head of a cross-attention."""
    options = TranscriptionOptions(norm=norm)
    found = transcribe(material.view, material.sample.states, cross, options=options)
    said = found.top[printed.pages, printed.places, 0]
    return Lens(cross, norm, printed.right(said), printed.sure(found))


def _selections(choices: Choices) -> list[tuple[str, Sequence[int] | None]]:
    """Return all heads, the chosen ones, and those of the other reading, named."""
    named = ((order, choices.of(order, choices.kept)[0]) for order in ORDERS[:2])
    chosen = [(f"{order}: {', '.join(map(str, heads))}", heads) for order, heads in named]
    return [("all heads", None), *chosen]


def _entropies(material: Material, choices: Choices, seed: int) -> Table:
    """Return how sure the lens is, which needs no text."""
    rows: list[tuple[Cell, ...]] = []
    documents = tuple(page.document for page in material.pages if page.questions)
    for name, heads in _selections(choices):
        found = transcribe(material.view, material.sample.states, choices.sublayer, heads=heads)
        rows.append((name, *mean_interval(found.entropies.mean(axis=1), documents, seed)))
    count = counted(len(documents), "pages", documents)
    caption = f"{choices.sublayer}: mean entropy of the lens (nats, 95 % interval); {count}"
    return Table(caption, ("heads", "entropy", "low", "high"), tuple(rows))


def _retrieved(material: Material, choices: Choices) -> list[Reads]:
    """Read what the heads take from the page where an answer token is due."""
    sample = material.sample
    special = sorted(set(material.teacher.tokens.tokenizer.all_special_ids))
    found = []
    for name, heads in _selections(choices):
        reading = attended_reading(
            material.view,
            sample,
            choices.sublayer,
            heads=heads,
            top=1,
            progress=material.progress,
        )
        text = ~np.isin(reading.wanted[:, 0], special)
        hits = (reading.ranks[0, text, 0] == 1).astype(float)
        documents = tuple(sample.documents[i] for i in reading.examples[text])
        found.append(Reads(name, hits, documents))
    return found


def _retrieval(retrieved: Sequence[Reads], sublayer: str, seed: int) -> Table:
    rows = tuple(
        (one.heads, *percent(share_interval(one.hits, one.documents, seed)))
        for one in retrieved
        if one.documents
    )
    count = counted(len(retrieved[0].hits), "answer tokens", retrieved[0].documents)
    caption = f"{sublayer}: answer tokens that the heads write (%, 95 % interval); {count}"
    return Table(caption, ("heads", "right", "low", "high"), rows)


def _mean(hits: np.ndarray | None) -> float | None:
    return None if hits is None else float(hits.mean())
