"""Losses of attention: where the student's heads look beside where the teacher's look.

With p and q the weights that one head of teacher and student gives the keys at one answer token:

    attention_kl   sum over the keys of p log(p / q)

and the mean over answer tokens and heads. A weight distribution has mass 1 however many keys there
are, so self-attention (some ten keys) and cross-attention (thousands) come out in one unit, nats
per head and token. A mean over the keys as well would make the second a thousand times too small.

Attention transfer by the KL of weights is MiniLM's (arXiv 2002.10957), for the last layer's
self-attention; for cross-attention it is an option of ours that no paper read here measures.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["attention_kl"]


def attention_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher | student), mean over tokens and heads.

    Args:
        student: [n, H, K] log-weights of heads at answer tokens; -inf where a key cannot be seen.
        teacher: [n, H, K] of the same heads at the same tokens.
    """
    unseen = teacher == -torch.inf  # 0 log 0 is 0; written as a product it would not be a number
    gap = (teacher - student).masked_fill(unseen, 0.0)
    return (teacher.exp() * gap).sum(dim=-1).mean()
