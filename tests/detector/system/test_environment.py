import json
import math
from importlib.metadata import version

from longshot.detector.system import environment as module
from longshot.detector.system.environment import environment, peak_resident_gb


def test_the_environment_is_plain_values():
    found = environment()
    assert found == json.loads(json.dumps(found))
    assert found["torch"] == version("torch")
    assert {"command", "commit", "uncommitted_changes", "python", "numpy", "platform"} <= found.keys()


def test_the_commit_is_ours_or_none(monkeypatch, tmp_path):
    # Installed, the package may lie in somebody else's repository: its commit says nothing about ours.
    (tmp_path / "longshot").mkdir()
    monkeypatch.setattr(module, "_CHECKOUT", tmp_path / "longshot")
    assert environment()["commit"] is None
    assert environment()["uncommitted_changes"] is False


def test_memory_is_not_known_where_the_system_does_not_say(monkeypatch):
    assert peak_resident_gb() > 0.01
    monkeypatch.setattr(module, "resource", None)
    assert math.isnan(peak_resident_gb())
