from __future__ import annotations

import subprocess
import sys

MODULES = ("viewer", "report", "tables", "plots", "analysis_files")


def test_floor_5_loads_no_torch_and_no_floor_between() -> None:
    code = (
        "import sys\n"
        + "".join(f"import circuitsearch.show.{name}\n" for name in MODULES)
        + "floors = ('teacher', 'discovery', 'students', 'search')\n"
        + "print([m for m in sys.modules if m in ('torch', 'transformers', 'optuna')\n"
        + "       or m.startswith(tuple(f'circuitsearch.{floor}.' for floor in floors))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
