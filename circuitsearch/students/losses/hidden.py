"""Losses of hidden states: the student's residual stream beside the teacher's, token by token.

With s and t [d] the streams of student and teacher at one answer token:

    hidden_mse     mean over the d numbers of (s - t)^2
    hidden_cosine  1 - s t / (|s| |t|), from 0 (same direction) to 2 (opposite)

and the mean over the answer tokens. Students keep the teacher's width d, so no map between spaces
is learned (FitNets, arXiv 1412.6550, need one). Where the streams are taken is the recipe's layer
map (`students.trace`). Taken where the readout's norm reads (`end`), the mean squared error is the
L2 of the last hidden state (VLMCompression, arXiv 2604.24380) and the cosine that of Puzzle
(arXiv 2411.19146).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["hidden_cosine", "hidden_mse"]


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared difference, mean over tokens and numbers.

    Args:
        student: [n, d] streams at answer tokens.
        teacher: [n, d] the teacher's at the same tokens.
    """
    return F.mse_loss(student.float(), teacher.float())


def hidden_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Return 1 - cosine, mean over tokens; a stream of zeros has cosine 0 with any other.

    Args:
        student: [n, d] streams at answer tokens.
        teacher: [n, d] the teacher's at the same tokens.
    """
    return (1.0 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()
