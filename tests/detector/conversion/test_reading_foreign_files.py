import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from longshot.detector.conversion.foreign_files import read_foreign
from longshot.detector.errors import CheckpointError


class Exploit:
    """Unpickling it calls a function, as real attacks do."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def exploits(target: Path) -> dict[str, Exploit]:
    """Each creates the file `target`."""
    return {
        "posix.system": Exploit(os.system, f"touch {target}"),
        "builtins.eval": Exploit(eval, f"open({str(target)!r}, 'w')"),
        "builtins.getattr": Exploit(getattr, Exploit(__import__, "os"), "system"),
        "numpy.save": Exploit(np.save, str(target), 1),
        "pathlib.": Exploit(Path.touch, target),
    }


@pytest.mark.parametrize("name", exploits(Path()))
@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_a_file_that_would_run_code_is_refused(tmp_path, name, suffix):
    target, path = tmp_path / "proof", tmp_path / f"evil{suffix}"
    content = {"model": {"head.cls_score.weight": np.zeros(3), "evil": exploits(target)[name]}}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({"model": {"a": torch.zeros(3)}, "evil": content["model"]["evil"]}, path)
    with pytest.raises(CheckpointError, match=r"evil\.\w+: refused: it holds \S+, and reading that could run code"):
        read_foreign(path)
    assert not list(tmp_path.glob("proof*"))


def test_the_exploits_work_where_nobody_refuses(tmp_path):
    evil = exploits(tmp_path / "proof")
    for name in ("posix.system", "builtins.eval", "pathlib."):
        pickle.loads(pickle.dumps(evil[name]))
        assert (tmp_path / "proof").exists()
        (tmp_path / "proof").unlink()


def test_objects_inside_an_array_are_refused(tmp_path):
    path = tmp_path / "objects.pkl"
    path.write_bytes(pickle.dumps({"a": np.array([{}, []], dtype=object)}))
    with pytest.raises(CheckpointError, match=r"objects\.pkl: 'a' is array of object; expected a state dict"):
        read_foreign(path)


@pytest.mark.parametrize(
    "damage", [b"", b"\x80\x04", b"no pickle at all", pickle.dumps([1, 2]), b"cnumpy\nndarray\n(I1\ntR."]
)
def test_damaged_pickles_are_an_error(tmp_path, damage):
    path = tmp_path / "damaged.pkl"
    path.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"damaged\.pkl: "):
        read_foreign(path)


def test_a_state_dict_is_found_wherever_it_lies(tmp_path):
    state = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
    wrapped = {
        "top.pth": state,
        "model.pth": {"model": state, "epoch": 3},
        "sd.pth": {"state_dict": state, "meta": {"x": 1}},
    }
    wrapped["module.pth"] = {"model": {f"module.{key}": value for key, value in state.items()}}
    for name, content in wrapped.items():
        torch.save(content, tmp_path / name)
    save_file(state, tmp_path / "a.safetensors")
    for path in sorted(tmp_path.iterdir()):
        file = read_foreign(path)
        assert file.tensors.keys() == state.keys()
        assert all(torch.equal(file.tensors[key], value) for key, value in state.items())
        assert file.metadata == ({"x": 1} if path.name == "sd.pth" else {})


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_arrays_and_numbers_of_numpy_are_read(tmp_path, suffix):
    path = tmp_path / f"best{suffix}"
    arrays = {"a": np.arange(6, dtype=">f4").reshape(2, 3), "b": np.float16(3), "c": np.arange(3)[::2]}
    # United-Perception keeps its best AP, a float64 of numpy's, beside the weights.
    content = {"model": arrays, "metric_val": np.float64(0.27), "iter": np.int64(150_000)}
    path.write_bytes(pickle.dumps(content)) if suffix == ".pkl" else torch.save(content, path)
    tensors = read_foreign(path).tensors
    assert torch.equal(tensors["a"], torch.arange(6.0).view(2, 3))
    assert torch.equal(tensors["b"], torch.tensor(3, dtype=torch.float16))
    assert torch.equal(tensors["c"], torch.tensor([0, 2]))


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize("array", [np.ones(2, np.longdouble), np.array(["a"]), np.ones(2, complex)])
def test_arrays_that_torch_does_not_have_are_an_error(tmp_path, suffix, array):
    path = tmp_path / f"odd{suffix}"
    content = {"model": {"a": array}}
    path.write_bytes(pickle.dumps(content)) if suffix == ".pkl" else torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"odd\{suffix}: 'a' is array of {array.dtype}; expected"):
        read_foreign(path)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_an_array_of_a_shape_alone_takes_no_memory(tmp_path, suffix):
    path = tmp_path / f"huge{suffix}"
    content = {"model": {"a": Exploit(np.ndarray, (10**10,))}}
    path.write_bytes(pickle.dumps(content)) if suffix == ".pkl" else torch.save(content, path)
    assert read_foreign(path).tensors["a"].numel() == 0


def test_what_is_no_file_of_weights_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing\.pth: no such file"):
        read_foreign(tmp_path / "missing.pth")
    (tmp_path / "a.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: not a readable safetensors file"):
        read_foreign(tmp_path / "a.safetensors")
    torch.save({"model": {"a": torch.zeros(1)}, "config": {}, "classes": {}, "criterion": {}}, tmp_path / "ours.pt")
    with pytest.raises(CheckpointError, match=r"ours\.pt: a Longshot checkpoint already"):
        read_foreign(tmp_path / "ours.pt")
    torch.save({"a": torch.zeros(1), "b": "text"}, tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match=r"text\.pt: 'b' is str; expected a state dict"):
        read_foreign(tmp_path / "text.pt")
