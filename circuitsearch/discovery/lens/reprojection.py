"""Token reprojection: the stream's nearest token, and the run that goes on from that token alone.

    x' = embedding(argmax(lm_head(x)))

(Donut-MINT, arXiv 2509.26235, Prop. 3 and Fig. 6). If a stream is as good after being collapsed to
its nearest token as before, the sub-layers up to there did no more than map tokens to tokens, and a
table of tokens can take their place (a plan with `C0=token`). `nearest_tokens` names the nearest
token at every place and the rank of the token that was put in; `reprojection_effects` measures what
collapsing costs.

The paper leaves open which norm stands in front of lm_head, which form of the embedding goes back
into the stream, and at which positions (`ReprojectionOptions`). Beside lm_head, the stream can be
compared with any form of the embedding itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from circuitsearch.core.errors import ConfigError, choice_problem, integer_problems, raise_together
from circuitsearch.teacher.decoders import Memory, ResidualDecoder, continue_from
from circuitsearch.teacher.documents.collate import Batch

from ..ablation import Progress
from ..listing import joined
from ..metrics import measure
from ..patching.components import Effects
from ..sample import Sample
from .embeddings import FORMS, SIMILARITIES, Form, Similarity, embedded, similarities
from .positions import Positions, Spots, located_batches, recorded, spots_of, targets_at
from .records import Reading
from .stream import chosen_places, walk
from .vocabulary import Gathered, LogitsOf, say_vectors

__all__ = ["ReprojectionOptions", "nearest_tokens", "reprojection_effects"]

Against = Literal["unembedding", "full", "positioned", "scaled", "raw"]
At = Literal["input", "output"]
LensNorm = Literal["final", "none"]
Where = Literal["all", "prompt"]


@dataclass(frozen=True)
class ReprojectionOptions:
    """How a vector finds its token, and what is put in its place.

    Attributes:
        against: what the vector is compared with: the `unembedding`, or a form of the embedding.
        similarity: `dot`, `cosine` or `distance`; the unembedding allows `dot` alone, the logit.
        norm: the decoder's `final` norm on the vector before comparing, or `none`. Forms of the
            embedding lie in the stream or near it, and are best compared without.
        into: form of the embedding that replaces the vector; only `full` lies in the stream.
        at: the stream in front of a sub-layer (`input`) or behind it (`output`) is replaced.
        positions: `all`, or those of the `prompt` only.
    """

    against: Against = "unembedding"
    similarity: Similarity = "dot"
    norm: LensNorm = "final"
    into: Form = "full"
    at: At = "input"
    positions: Where = "all"

    def __post_init__(self) -> None:
        """Refuse unknown words, and a cosine with the unembedding."""
        choices: tuple[tuple[str, str, tuple[str, ...]], ...] = (
            ("against", self.against, get_args(Against)),
            ("similarity", self.similarity, SIMILARITIES),
            ("norm", self.norm, get_args(LensNorm)),
            ("into", self.into, FORMS),
            ("at", self.at, get_args(At)),
            ("positions", self.positions, get_args(Where)),
        )
        problems = [choice_problem(n, str(got), ok) for n, got, ok in choices if got not in ok]
        if self.against == "unembedding" and self.similarity in ("cosine", "distance"):
            problems.append(
                f"similarity: got {self.similarity} with the unembedding, allowed is dot; compare "
                "with a form of the embedding instead"
            )
        raise_together(problems, ConfigError, "Reprojection options")


def nearest_tokens(
    decoder: ResidualDecoder,
    sample: Sample,
    options: ReprojectionOptions | None = None,
    *,
    positions: str | Positions = "prompt",
    places: Sequence[str] | None = None,
    top: int = 1,
    progress: Progress | None = None,
) -> Reading:
    """Find the stream's nearest tokens, and the rank of the token that stands at the position.

    Args:
        decoder: the view.
        sample: what to run on.
        options: `against`, `similarity` and `norm` count here.
        positions: a word of `positions.POSITIONS`, or a function of the example.
        places: `embedding` and names of sub-layers, the stream behind each; None means all.
        top: number of nearest tokens to keep.
        progress: called with ("nearest tokens", batches done, batches).

    Returns:
        A reading whose wanted token is the input token: `curve()[place].top1` is the share of
        positions that recover it.

    Raises:
        ConfigError: a word, place, position or number is not allowed, or the adapter does not show
            the pieces of its embedding.
        DataError: no example has a chosen position.
    """
    chosen = ReprojectionOptions() if options is None else options
    wanted_places = chosen_places(decoder, places)
    raise_together(integer_problems("top", top, 1), ConfigError, "Nearest tokens")
    gathered, times = Gathered(wanted_places, []), len(wanted_places)
    with torch.no_grad():
        for at in located_batches(sample, positions):
            memory = decoder.memory(at.states, at.batch.pages)
            found = walk(decoder, at.batch.ids, memory)
            vectors = torch.cat([at.spots.at(x) for name, x, _ in found if name in wanted_places])
            wanted = targets_at(at.batch, at.spots, "input", decoder.shape.vocabulary)
            said = say_vectors(
                vectors,
                at.spots.positions.repeat(times),
                _comparison(decoder, chosen),
                wanted.repeat(times, 1),
                top,
                decoder.shape.vocabulary,
            )
            gathered.add(at, wanted, said)
            if progress is not None:
                done = at.first // sample.batch_size + 1
                progress("nearest tokens", done, len(sample.batches))
    named = {name: asdict(chosen)[name] for name in ("against", "similarity", "norm")}
    return gathered.reading(sample.fingerprint, {**named, "positions": recorded(positions)})


def reprojection_effects(
    decoder: ResidualDecoder,
    sample: Sample,
    options: ReprojectionOptions | None = None,
    *,
    sublayers: Sequence[str] | None = None,
    metric: str = "answer_loss",
    progress: Progress | None = None,
) -> Effects:
    """Measure what collapsing the stream to its nearest tokens costs, at one sub-layer at a time.

    Args:
        decoder: the view.
        sample: what to run on.
        options: how tokens are found and put back; None means the defaults.
        sublayers: where to collapse, in front of or behind each; None means every sub-layer.
        metric: a name in `metrics.METRICS`.
        progress: called with ("reprojection", batches done, batches).

    Returns:
        By sub-layer, the rise of each example's metric [examples], by default its loss in nats;
        positive means that the stream held something useful that its nearest token does not.

    Raises:
        ConfigError: a sub-layer or the metric is not there, or the adapter does not show the
            pieces of its embedding that the options need.
    """
    chosen = ReprojectionOptions() if options is None else options
    known = [sublayer.name for sublayer in decoder.sublayers]
    asked = known if sublayers is None else list(sublayers)
    wrong = [choice_problem("sub-layer", name, known) for name in asked if name not in known]
    raise_together(wrong, ConfigError, "Reprojection")
    columns: dict[str, list[Tensor]] = {name: [] for name in asked}
    with torch.no_grad():
        for done, (batch, states) in enumerate(sample.batches):
            memory, foils = decoder.memory(states, batch.pages), sample.foils(done)
            streams = [x for _, x, _ in walk(decoder, batch.ids, memory)]
            clean = measure(decoder, streams[-1], batch.labels, metric, foils)
            for index, name in enumerate(known):
                if name in columns:
                    end = _collapsed_end(decoder, batch, memory, streams, index, chosen)
                    value = measure(decoder, end, batch.labels, metric, foils)
                    columns[name].append(value - clean)
            if progress is not None:
                progress("reprojection", done + 1, len(sample.batches))
    return {name: joined(parts) for name, parts in columns.items()}


def _comparison(decoder: ResidualDecoder, options: ReprojectionOptions) -> LogitsOf:
    """Return the function from vectors [K, d] and positions [K] to similarities [K, V]."""
    norm = decoder.final_norm if options.norm == "final" else None
    against = options.against

    def compare(x: Tensor, positions: Tensor) -> Tensor:
        x = x if norm is None else norm(x)
        if against == "unembedding":
            return decoder.unembed(x)
        return similarities(decoder, x, positions, against, options.similarity)

    return compare


def _collapsed_end(
    decoder: ResidualDecoder,
    batch: Batch,
    memory: Memory,
    streams: Sequence[Tensor],
    index: int,
    options: ReprojectionOptions,
) -> Tensor:
    """Return the last stream [B, T, d] of the run collapsed at the sub-layer of that index."""
    place = index if options.at == "input" else index + 1
    x = _collapsed(decoder, batch, streams[place], spots_of(batch, options.positions), options)
    return continue_from(decoder, x, memory, after=decoder.sublayers[place - 1] if place else None)


def _collapsed(
    decoder: ResidualDecoder, batch: Batch, x: Tensor, spots: Spots, options: ReprojectionOptions
) -> Tensor:
    """Return the stream x [B, T, d] with its nearest tokens' embeddings at the spots."""
    said = say_vectors(
        spots.at(x),
        spots.positions,
        _comparison(decoder, options),
        spots.rows.new_zeros(len(spots.rows), 0),
        1,
        decoder.shape.vocabulary,
    )
    ids = batch.ids.clone()
    ids[spots.rows, spots.positions] = torch.from_numpy(said["top"][:, 0]).to(ids.device)
    collapsed = x.clone()
    collapsed[spots.rows, spots.positions] = spots.at(embedded(decoder, ids, options.into))
    return collapsed
