"""Stage results: kept under the key of their inputs, whole or not at all."""

import pytest

from circuitsearch.config import SearchConfig
from circuitsearch.configfile import load_config
from circuitsearch.core.errors import ConfigError, StorageError
from circuitsearch.progress import QuietReporter
from circuitsearch.workspace import CONFIG_FILE, Workspace, config_in


@pytest.fixture
def work(tmp_path):
    return _workspace(tmp_path / "out", "trial")


def _workspace(folder, name, **changes):
    budget = [{"quantity": "macs", "limit": "50%"}]
    config = SearchConfig.model_validate(
        {"name": name, "output": folder, "budget": budget, **changes}
    )
    return Workspace(config, QuietReporter())


def test_a_result_is_computed_once_per_key(work):
    calls = []

    def compute():
        calls.append(1)
        return {"b": 1.5, "a": [len(calls)]}

    first = work.kept("stage", ["inputs", 1], compute)
    assert work.kept("stage", ["inputs", 1], compute) == first == {"a": [1], "b": 1.5}
    assert list(first) == ["a", "b"]  # a first run sees the order that a resumed one will
    assert work.kept("stage", ["inputs", 2], compute) == {"a": [2], "b": 1.5}


def test_what_is_on_file_is_found_without_computing(work):
    assert work.found("stage", "key") is None
    work.kept("stage", "key", lambda: [1])
    assert work.found("stage", "key") == [1]
    assert work.found("stage", "other") is None
    (work.config.work / "stage.json").write_text('{"key": ')
    assert work.found("stage", "key") is None


def test_a_damaged_result_is_made_again(work):
    work.kept("stage", "key", lambda: 1)
    (work.config.work / "stage.json").write_text('{"key": ')
    assert work.kept("stage", "key", lambda: 2) == 2


def test_an_interrupted_stage_leaves_nothing(work):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.kept("stage", "key", interrupted)
    assert work.kept("stage", "key", lambda: 3) == 3


def test_the_resolved_configuration_is_written_and_guards_the_folder(work):
    work.write_config()
    work.write_config()
    assert load_config(work.folder / CONFIG_FILE) == work.config
    with pytest.raises(ConfigError, match="holds the search 'trial'"):
        _workspace(work.folder, "other").write_config()


def test_what_stands_beside_a_search_leaves_its_configuration(work):
    def changed():
        return _workspace(work.folder, "trial", seed=7)

    changed().write_config(beside=True)  # nothing is there yet
    assert load_config(work.folder / CONFIG_FILE).seed == 7
    work.write_config()
    changed().write_config(beside=True)
    assert load_config(work.folder / CONFIG_FILE) == work.config
    with pytest.raises(ConfigError, match="holds the search 'trial'"):
        _workspace(work.folder, "other").write_config(beside=True)


def test_one_process_at_a_time(work):
    lock = work.claim()
    with pytest.raises(StorageError, match="another process"):
        _workspace(work.folder, "trial").claim()
    lock.release()
    _workspace(work.folder, "trial").claim().release()


def test_a_folder_that_is_elsewhere_than_its_configuration_says_is_refused(work, monkeypatch):
    """Going on there would begin another search, or stop one that is not meant."""
    work.write_config()
    assert config_in(work.folder) == work.folder / CONFIG_FILE
    moved = work.folder.with_name("moved")
    work.folder.rename(moved)
    with pytest.raises(ConfigError, match=r"if it was moved, set output: .*moved there"):
        config_in(moved)
    with pytest.raises(ConfigError, match=r"no search\.yaml there"):
        config_in(moved.parent)
