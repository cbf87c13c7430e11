"""What the frozen parts of a teacher say about pages, computed once and kept on disk.

prepare   encoder states and teacher logits of every page, in shards, keyed by their content
reader    batches of them for training and evaluation
shards    one file each, written whole, with its checksum
targets   teacher logits, all of them or the best with the tail's mass
"""

from .prepare import Precision, prepare_features
from .reader import FeatureBatch, Features
from .targets import TeacherRows

__all__ = ["FeatureBatch", "Features", "Precision", "TeacherRows", "prepare_features"]
