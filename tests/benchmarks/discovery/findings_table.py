"""The tables of `findings.py` as Markdown: mean (min to max) over page seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

SHARES = ("0.001", "0.01", "0.05", "0.2", "0.5")
GROUPS = ("C", "C0", "C1", "C2", "C3", "S", "S0", "S1", "S2", "S3")
Seeds = Sequence[Mapping[str, Any]]


def table(found: Mapping[str, Any]) -> str:
    """Return everything that was measured, a table each."""
    seeds = list(found["seeds"].values())
    scored, measured = (
        ", ".join(str(one["questions"][part]) for one in seeds) for part in ("scored", "measured")
    )
    lines = [
        "# Findings on the shipped teacher",
        "",
        "`OMP_NUM_THREADS=1 python tests/benchmarks/discovery/findings.py --out results/discovery "
        f"--seeds {' '.join(found['seeds'])}`",
        "",
        f"Shipped teacher `{found['teacher']}`; per page seed ({', '.join(found['seeds'])}) "
        f"{found['pages']} rendered pages to score on ({scored} questions), {found['pages']} to "
        f"take averages from and {found['pages']} to measure on ({measured} questions). "
        f"{found['threads']} thread of {found['processors']} processors (load "
        f"{found['load']:.1f} before the run), torch {found['torch']}. "
        "Mean (min to max) over page seeds.",
        *_circuits(seeds, found["random rankings"]),
        *_sums(seeds),
        *_times(seeds),
        *_heads(seeds),
        *_propositions(seeds),
    ]
    return "\n".join(lines) + "\n"


def _spread(seeds: Seeds, *keys: str) -> str:
    """Return mean (min to max) of the number under these keys."""
    values: list[Any] = list(seeds)
    for key in keys:
        values = [value[key] for value in values]
    numbers = (np.mean(values), min(values), max(values))
    mean, low, high = (f"{round(number, 2) + 0.0:.2f}" for number in numbers)  # no minus zero
    return mean if low == high else f"{mean} ({low} to {high})"


def _whole(values: Sequence[int]) -> str:
    """Return counts: one when all are equal, all of them otherwise."""
    return ", ".join(f"{v:,}" for v in (values if len(set(values)) > 1 else values[:1]))


def _header(*columns: str) -> list[str]:
    """Return a table's head; the first column is text."""
    return ["", f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]


def _circuits(seeds: Seeds, rankings: int) -> list[str]:
    first = seeds[0]["circuits"]
    lines = [
        "",
        "## Circuits of edges between heads",
        "",
        f"{first['edges']:,} edges, margin, mean ablation, edges scored on other pages. CPR: area "
        "under f, signed ranking; CMD: area between f and 1, absolute ranking (log: over the "
        "logarithm of the share, normalised). Random: mean over "
        f"{rankings} rankings. Each f at a share of the edges taken.",
        *_header("ranking", "CPR (1 best)", "CMD (0 best)", "CPR log", "CMD log"),
    ]
    names = ("relp", "eap", "random")
    for name in names:
        areas = (
            _spread(seeds, "circuits", name, area) for area in ("cpr", "cmd", "cpr_log", "cmd_log")
        )
        lines.append(f"| {name} | {' | '.join(areas)} |")
    lines += _header("f", *(f"{100 * float(share):g} %" for share in SHARES))
    for name in names:
        for kind in ("absolute",) if name == "random" else ("absolute", "signed"):
            shares = (_spread(seeds, "circuits", name, "f", kind, share) for share in SHARES)
            label = name if name == "random" else f"{name}, {kind}"
            lines.append(f"| {label} | {' | '.join(shares)} |")
    return lines


def _sums(seeds: Seeds) -> list[str]:
    lines = [
        "",
        "## Sum of first-order path scores against the measured effect",
        "",
        "Sources embedding and encoder, metric `logit` (logits; positive: worse without them).",
        *_header("target, ablation, feed-forwards", "paths", "sum of scores", "measured effect"),
    ]
    for name, one in seeds[0]["sums"].items():
        total, effect = (_spread(seeds, "sums", name, key) for key in ("sum", "effect"))
        lines.append(f"| {name} | {one['paths']} | {total} | {effect} |")
    return lines


def _times(seeds: Seeds) -> list[str]:
    lines = [
        "",
        "## Wall times of paths",
        "",
        "Processor seconds do not count what else the machine did. Applications: of a sub-layer's "
        "linear map per batch. Beginnings: those there are when no ending is tabulated; what the "
        "bounds exclude is what is not expanded.",
        *_header("", "paths", "wall s", "processor s", "applications", "expanded", "of beginnings"),
    ]
    for name, one in seeds[0]["times"].items():
        wall, processor = (_spread(seeds, "times", name, clock) for clock in ("wall", "processor"))
        counts = (
            _whole([seed["times"][name][key] for seed in seeds]) if key in one else ""
            for key in ("applications", "expanded", "beginnings")
        )
        lines.append(f"| {name} | {one['paths']:,} | {wall} | {processor} | {' | '.join(counts)} |")
    return lines


def _heads(seeds: Seeds) -> list[str]:
    lines = [
        "",
        "## Head statistics against exact effects of heads",
        "",
        "Spearman, positive where the statistic would keep the heads of larger effect: variance of "
        "cross-attention, high is kept; entropy of self-attention over the logarithm of the keys "
        "seen, low is kept; rows that predict an answer token. Together: statistic and effect "
        "averaged over seeds, with its p-value over heads (t approximation; rough for 8 heads). "
        "Other readings: smallest to largest over rows, norms and averages, and seeds.",
    ]
    for setting in [name for name in seeds[0]["heads"] if name != "statistic"]:
        lines += [
            "",
            f"### Effects: {setting}",
            *_header("heads", "n", "Spearman per seed", "together", "p", "other readings"),
        ]
        for group in GROUPS:
            names = [n for n in seeds[0]["heads"]["statistic"] if n.startswith(group)]
            each = _spread(seeds, "heads", setting, "agreement", group)
            whole = _together(seeds, setting, names)
            ends = [seed["heads"][setting]["readings"][group] for seed in seeds]
            low, high = min(end[0] for end in ends), max(end[1] for end in ends)
            lines.append(
                f"| {group} | {len(names)} | {each} | {whole.statistic:.2f} | {whole.pvalue:.2g} | "
                f"{low:.2f} to {high:.2f} |"
            )
    return lines


def _together(seeds: Seeds, setting: str, names: Sequence[str]) -> Any:
    """Return Spearman of statistic and effect, both averaged over seeds."""
    sign = 1 if names[0].startswith("C") else -1
    heads = [seed["heads"] for seed in seeds]
    worth = [sign * np.mean([one["statistic"][name] for one in heads]) for name in names]
    effect = [np.mean([one[setting]["effects"][name] for one in heads]) for name in names]
    return stats.spearmanr(worth, effect)


def _propositions(seeds: Seeds) -> list[str]:
    lines = [
        "",
        "## Propositions 2 and 3 of Donut-MINT",
        "",
        "Proposition 2: M3 only clears the residual stream away, so C3's write alone does as well "
        "as the whole. Loss of the first answer token, nats:",
        *_header("run", "loss"),
    ]
    first = seeds[0]["propositions"]
    for name in first["first token's loss"]:
        loss = _spread(seeds, "propositions", "first token's loss", name)
        lines.append(f"| {name} | {loss} |")
    lines += [
        "",
        "Proposition 3: the stream in front of M0 is as good as its nearest token, and M0 maps "
        "tokens to lower case. Prompt tokens whose nearest token (unembedding, final norm) is "
        "their lowercase form or themselves; control: tokens without case, kept as themselves.",
        *_header("stream behind", "lowered", "kept", "control"),
    ]
    for place in first["case"]:
        shares = (
            _spread(seeds, "propositions", "case", place, key)
            for key in ("lowered", "kept", "control")
        )
        lines.append(f"| {place} | {' | '.join(shares)} |")
    rise = _spread(seeds, "propositions", "rise when collapsed", "M0")
    clean = _spread(seeds, "propositions", "answer loss")
    lines += [
        "",
        f"Answer loss {clean} nats; rise when the stream in front of M0 is collapsed to its "
        f"nearest tokens: {rise}.",
    ]
    return lines
