"""The small search that the end-to-end tests run, and one that ran through."""

import pytest

from tests.end_to_end.shell import circuitsearch

SEARCH = """\
name: small
output: {output}
teacher: {teacher}
data: {{source: rendered, train: 24, score: 4, select: 5, final: 6}}
budget:
  - {{quantity: parameters, limit: 50%}}
  - {{quantity: macs, limit: 70%}}
elastic: {{steps: 6}}
distill: {{steps: 6, batch: 8}}
exhaustive: {{top: 2}}
search: {{trainings: 3, warm_scores: 1, warm_elastic: 1}}
"""


def write_search(folder, teacher, name="out"):
    path = folder / f"{name}.yaml"
    path.write_text(SEARCH.format(output=folder / name, teacher=teacher))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder):
    """A search that ran through."""
    folder = tmp_path_factory.mktemp("search")
    path = write_search(folder, tiny_folder)
    done = circuitsearch("run", path)
    return path, folder / "out", done
