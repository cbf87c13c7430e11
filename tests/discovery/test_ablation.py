from __future__ import annotations

import pytest
import torch

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError
from circuitsearch.discovery.ablation import batches_with_replacements, unit_means
from circuitsearch.discovery.sample import Sample, token_sample
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import Teacher
from tests.discovery.literal import all_rows, records
from tests.discovery.small_decoders import small_gpt2


def test_means_are_plain_averages_over_answer_rows(tiny_teacher: Teacher, sample: Sample) -> None:
    batch, states = all_rows(sample)
    answers = batch.labels != -100
    means = unit_means(tiny_teacher.decoder, sample)
    literal = records(tiny_teacher.model.decoder, batch, states, tiny_teacher.decoder.sublayers)
    assert set(means.units) == set(tiny_teacher.decoder.sublayers)
    for sublayer, (units, write) in literal.items():
        # float32 forward in another batch layout: last digits differ
        torch.testing.assert_close(
            means.units[sublayer].flatten(), units[answers].mean(0), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            tiny_teacher.decoder.project(sublayer, means.units[sublayer]),
            write[answers].mean(0),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("by_position", [False, True])
def test_means_have_the_precision_of_the_decoder(by_position: bool) -> None:
    """A sample of bare tokens holds float32 states; that says nothing about the decoder."""
    decoder = residual_decoder(small_gpt2().double())
    rows, prompts = [[1, 5, 3, 7, 8], [2, 9, 10, 6]], [3, 2]
    means = unit_means(decoder, token_sample(rows, prompts), by_position=by_position)
    first = SubLayer.parse("S0")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for row, prompt in zip(rows, prompts, strict=True):
        start = 0 if by_position else prompt - 1
        with torch.no_grad():
            x = decoder.embed(torch.tensor([row[:-1]]))
            units = decoder.units(first, x, decoder.memory(torch.zeros(1, 0, 1)))
        seen.append((x[0, start:], units[0, start:]))
    for found, place in ((means.embedding, 0), (means.units[first], 1)):
        long, short = (values[place] for values in seen)
        if by_position:
            expected = torch.cat([(long[:3] + short) / 2, long[3:]])
        else:
            expected = torch.cat([long, short]).mean(dim=0)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_zero_replaces_the_write_and_not_its_bias_for_units(
    tiny_teacher: Teacher, sample: Sample
) -> None:
    decoder = tiny_teacher.decoder
    for batch, states, stand_in in batches_with_replacements(decoder, sample, "zero"):
        memory, x = decoder.memory(states, batch.pages), decoder.embed(batch.ids)
        for sublayer in decoder.sublayers:
            units = decoder.units(sublayer, x, memory)
            assert stand_in.units_for(sublayer, units).abs().max() == 0
            assert stand_in.write_for(sublayer, x).abs().max() == 0
            assert decoder.project(sublayer, torch.zeros_like(units)).abs().max() > 0


def test_resample_is_the_run_on_the_next_page(tiny_teacher: Teacher, sample: Sample) -> None:
    decoder = tiny_teacher.decoder
    whole, _ = all_rows(sample)
    others = sample.states[(whole.pages + 1) % len(sample.states)]
    literal = records(tiny_teacher.model.decoder, whole, others, decoder.sublayers)
    start = 0
    for batch, _, stand_in in batches_with_replacements(decoder, sample, "resample"):
        length = batch.ids.shape[1]
        for sublayer, (units, write) in literal.items():
            rows = slice(start, start + len(batch.ids))
            clean = torch.empty_like(write[rows, :length])
            torch.testing.assert_close(
                stand_in.write_for(sublayer, clean), write[rows, :length], rtol=1e-4, atol=1e-5
            )
            shaped = stand_in.units[sublayer].flatten(2)  # type: ignore[index]
            torch.testing.assert_close(shaped, units[rows, :length], rtol=1e-4, atol=1e-5)
        start += len(batch.ids)


def test_unknown_ablation(tiny_teacher: Teacher, sample: Sample) -> None:
    with pytest.raises(ConfigError, match="did you mean 'zero'"):
        next(batches_with_replacements(tiny_teacher.decoder, sample, "zeros"))
