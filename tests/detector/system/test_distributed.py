"""One run on two processes, as torchrun starts them: on this machine's CPU, by gloo."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from longshot.detector.build import build_run
from longshot.detector.build_data import build_data, build_training_loader
from longshot.detector.checkpoint.file import load_checkpoint, network_weights
from longshot.detector.checkpoint.folder import step_path
from longshot.detector.config.schema import parse_config
from longshot.detector.errors import ConfigError
from longshot.detector.inference import load_model
from longshot.detector.run.loop import train
from longshot.detector.system import distributed
from longshot.detector.system.distributed import columns_of_others, from_rank_zero, process_group

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def run_rank(folder):
    """One of the processes does one job after the other: a run from a configuration, or from a checkpoint too."""
    with process_group("cpu") as process:
        own = np.full(process.rank + 2, process.rank / 3), np.full((process.rank + 2, 3), process.rank, np.uint8)
        others = [[column.tolist() for column in columns] for columns in columns_of_others(own, process.device)]
        told = [process.rank, process.world_size, str(process.device), others, from_rank_zero(process.rank)]
        (folder / f"process_{process.rank}.json").write_text(json.dumps(told))
        for values, checkpoint in json.loads((folder / "jobs.json").read_text()):
            try:
                train(parse_config(values), process, checkpoint)
            except (FloatingPointError, ConfigError) as error:
                with open(folder / f"errors_{process.rank}.jsonl", "a") as file:
                    print(json.dumps([type(error).__name__, str(error)]), file=file)


@pytest.fixture(scope="module")
def sparse_config(make_config, sparse):
    """(folder) -> Config of 6 steps in passes, with averaged weights, on images most of which are empty."""

    def make(folder):
        # A loss without kinks: where the edges of two boxes meet, GIoU's gradient jumps.
        different = {
            "data": {"train": {"annotations": str(sparse)}, "aspect_grouping": False},
            "loss": {"box": {"name": "smooth_l1", "weight": 1.0}},
            "optimizer": {"clip_norm": 1.0},
            "train": {"images_per_pass": 1, "ema_decay": 0.9},
            "eval": {"every": 3},
        }
        return make_config(folder, different)

    return make


@pytest.fixture(scope="module")
def sparse(shapes, tmp_path_factory):
    """The training annotations with the objects of 4 images only, of 15."""
    content = json.loads(shapes.train.read_text())
    content["images"] = content["images"][:15]
    kept = {image["id"] for image in content["images"][4:8]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    path = tmp_path_factory.mktemp("sparse") / "train.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def two_processes(make_config, sparse_config, learned, run_processes, tmp_path_factory):
    """The folder of what two processes have done: a folder per run."""
    folder = tmp_path_factory.mktemp("two processes")
    sparse = sparse_config(folder / "sparse")
    batch_norm = make_config(folder / "bn", {"model": {"backbone": {"norm": "bn"}}, "eval": {"pictures": 1}})
    again = load_model(learned / "checkpoints" / "best.pt").config.model_copy(
        update={"output": str(folder / "evaluated")}
    )
    diverging = make_config(folder / "diverging", {"optimizer": {"lr": 1e9, "clip_norm": None}})
    jobs = [
        (sparse, None),
        (sparse, None),
        (batch_norm, None),
        (again, str(step_path(learned / "checkpoints", 300))),
        (diverging, None),
    ]
    (folder / "jobs.json").write_text(json.dumps([(c.model_dump(mode="json"), path) for c, path in jobs]))
    ended = run_processes(2, __file__, folder)
    assert ended.codes == [0, 0], ended.output
    return folder


def records(folder, kind="train"):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    numbers = ("step", "loss", "classification", "box", "positives", "gradient_norm", "learning_rate", "AP", "AP50")
    return [{k: v for k, v in line.items() if k in numbers} for line in lines if line["kind"] == kind]


def errors(folder, rank):
    return [json.loads(line) for line in (folder / f"errors_{rank}.jsonl").read_text().splitlines()]


def vector(weights):
    return torch.cat([value.double().flatten() for value in weights.values()])


def test_two_processes_train_as_one(two_processes, sparse_config, cpu, tmp_path):
    config = sparse_config(tmp_path)
    train(config, cpu)
    ours, theirs = records(tmp_path), records(two_processes / "sparse")
    assert len(theirs) == 6
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    assert len(records(two_processes / "sparse", "evaluation")) == 2
    torch.manual_seed(config.seed)
    start = vector(build_run(config, build_data(config, cpu).classes, cpu, num_images=24).network.state_dict())
    one, two = (
        load_checkpoint(step_path(folder / "checkpoints", 6)) for folder in (tmp_path, two_processes / "sparse")
    )
    for weights_of in (lambda state: state["model"], network_weights):
        ours, theirs = vector(weights_of(one)), vector(weights_of(two))
        assert (ours - theirs).norm() < 1e-3 * (ours - start).norm()
    assert (
        one["criterion"].keys()
        == two["criterion"].keys()
        == {"classification.positive_gradient", "classification.negative_gradient"}
    )
    for key, value in one["criterion"].items():
        torch.testing.assert_close(two["criterion"][key], value, rtol=1e-3, atol=0)


def test_those_steps_have_no_object_on_one_rank_or_on_every_rank(sparse_config, cpu, two_processes):
    config = sparse_config("nowhere")
    data = build_data(config, cpu)
    objects = []
    for rank in (0, 1):
        loader = build_training_loader(config, data, cpu._replace(rank=rank, world_size=2), first=0, total=6)
        objects.append([sum(len(target.boxes) for target in batch.targets) for batch in loader])
    having = {(first > 0, second > 0) for first, second in zip(*objects, strict=True)}
    assert having >= {(False, False), (False, True), (True, False)}, objects
    assert 0 in [record["positives"] for record in records(two_processes / "sparse")]


def test_evaluation_on_two_processes_equals_one_bit_for_bit(two_processes, learned):
    # 7 images in batches of 3: two batches, or four images, on rank 0, and one of three images on rank 1.
    ours, theirs = ((folder / "metrics.json").read_text() for folder in (learned, two_processes / "evaluated"))
    assert ours == theirs
    assert json.loads(ours)["AP"] > 50


def test_statistics_of_batch_norm_are_the_same_on_all_ranks_when_evaluating(two_processes, make_config, cpu, tmp_path):
    # What two processes measured is what their checkpoint scores in one.
    config = make_config(tmp_path, {"model": {"backbone": {"norm": "bn"}}})
    train(config, cpu, resume=str(step_path(two_processes / "bn" / "checkpoints", 6)))
    ours, theirs = ((folder / "metrics.json").read_text() for folder in (tmp_path, two_processes / "bn"))
    assert ours == theirs


def test_all_ranks_raise_when_a_loss_is_not_finite(two_processes):
    texts = [told for kind, told in errors(two_processes, 0) + errors(two_processes, 1) if kind == "NonFiniteStep"]
    assert len(texts) == 2
    assert "Process 0 had the images" in texts[0]
    assert "Process 1 had the images" in texts[1]
    assert texts[0].split("Process")[0] == texts[1].split("Process")[0]


def test_what_rank_zero_finds_wrong_is_raised_on_all_ranks(two_processes):
    refused = [errors(two_processes, rank)[0] for rank in (0, 1)]
    assert refused[0] == refused[1]
    assert refused[0][0] == "ConfigError"
    assert refused[0][1].startswith(f"{two_processes / 'sparse'}: holds a run already")


def test_each_process_knows_itself_and_rank_zero_is_heard_and_hears(two_processes):
    told = [json.loads((two_processes / f"process_{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == [0, 2, "cpu", [[[1 / 3] * 3, [[1, 1, 1]] * 3]], 0]
    assert told[1] == [1, 2, "cpu", [], 0]


def test_only_rank_zero_writes_and_speaks(two_processes):
    for folder in ("sparse", "bn"):
        log = (two_processes / folder / "log.txt").read_text()
        assert log.count("trainable parameters") == 1
        assert len(list((two_processes / folder).glob("events*"))) == 1
    assert [p.name for p in (two_processes / "bn" / "pictures").iterdir()] == ["step_00000006.png"]
    assert "warning: model.backbone.norm bn takes its statistics from 2 images at a time" in log


# ----------------------------------------------------------------------------------------------------------- one process


@pytest.fixture
def variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_restart_finds_nothing_of_the_processes_before_it_in_the_store_of_torchrun():
    shared, corners = torch.distributed.HashStore(), []
    for attempt in ("first", "second"):
        with ThreadPoolExecutor(3) as pool:
            corners.append(list(pool.map(lambda rank: distributed._fresh(shared, rank, 3), range(3))))
        assert not any(corner.check(["address of 1"]) for corner in corners[-1])
        corners[-1][1].set("address of 1", attempt)
    for attempt, (zero, _, two) in zip(("first", "second"), corners, strict=True):
        assert zero.get("address of 1") == two.get("address of 1") == attempt.encode()


def test_a_process_that_died_while_it_came_does_not_keep_the_next_waiting():
    shared = torch.distributed.HashStore()
    shared.set("word of 1", "of the dead")
    with ThreadPoolExecutor(2) as pool:
        zero = pool.submit(distributed._fresh, shared, 0, 2)
        while not shared.check(["name for of the dead"]):
            time.sleep(0.001)
        assert not zero.done()
        one = distributed._fresh(shared, 1, 2)
    one.set("x", "1")
    assert zero.result().get("x") == b"1"


def test_without_torchrun_a_process_is_alone(variables):
    with process_group("cpu") as process:
        assert process == (0, 1, torch.device("cpu"))
    assert not torch.distributed.is_initialized()


def test_alone_nothing_is_communicated():
    tensor = torch.ones(3)
    assert distributed.all_sum(tensor) is tensor
    assert list(distributed.columns_of_others([np.ones(3)], tensor.device)) == []
    assert distributed.from_rank_zero("x") == "x"
    distributed.barrier()
    distributed.share_buffers(torch.nn.BatchNorm2d(2))


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_torchruns_variables_are_an_error(variables, missing):
    for name in VARIABLES:
        if name != missing:
            variables.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"RANK and WORLD_SIZE are set, but {missing} not: start with `torchrun`"):
        process_group("cpu").__enter__()


def test_a_stray_variable_of_a_batch_system_is_none_of_our_business(variables):
    variables.setenv("RANK", "3")
    variables.setenv("MASTER_ADDR", "node7")
    with process_group("cpu") as process:
        assert process.world_size == 1


def test_a_gpu_that_is_not_there_is_an_error(variables):
    variables.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="device: cuda, but process 0 of this machine finds 0 GPUs"):
        process_group("cuda").__enter__()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_rank(Path(sys.argv[1]))
