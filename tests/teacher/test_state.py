"""Training states that cannot be written: an error with its remedy, and nothing half written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuitsearch.core.errors import StorageError
from circuitsearch.teacher.state import load_state, save_state


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    named = dict(layer.named_parameters())
    optimizer = torch.optim.AdamW(layer.parameters())
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    for path in (tmp_path / "taken", tmp_path / "file" / "state"):
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="has free space"):
            save_state(path, named, optimizer, {"step": "1"})
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "taken"]
    save_state(tmp_path / "state", named, optimizer, {"step": "2"})
    assert load_state(tmp_path / "state", named, optimizer) == {"step": "2"}
    # a worker of another user goes on from it: as readable as any new file
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "file").stat().st_mode
