"""One evaluation on 2, 3 and 4 processes: on this machine's CPU, by gloo."""

import json
from itertools import product

import numpy as np
import pytest

from longshot.detector.build_data import build_evaluation_loader, build_val
from longshot.detector.checkpoint.file import load_checkpoint, save_checkpoint
from longshot.detector.checkpoint.folder import step_path
from longshot.detector.config.schema import parse_config
from longshot.detector.report.checkpoints import score_checkpoint
from longshot.detector.run.loop import train

WORLD_SIZES = (2, 3, 4)

# The first 2, the first 3 and all of 4 processes do each job. Of 3, two do the same part of the job "shared"; then each
# writes to a folder of its own, where a killed run has left something; then they do "sick", with an image that cannot be
# read.
PROCESS = """
import json, os, sys
from pathlib import Path
import torch
from longshot.detector.build import build_evaluation
from longshot.detector.build_data import build_val
from longshot.detector.config.schema import parse_config
from longshot.detector.system.distributed import process_group
from longshot.detector.inference import load_model
from longshot.detector.report.checkpoints import score_checkpoint

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
*groups, sick = json.loads((folder / "groups.json").read_text())
jobs = json.loads((folder / "jobs.json").read_text())

def score(name, process):
    config, checkpoint, suffix, fixed = jobs[name]
    path = folder / f"{name} on {process.world_size}{suffix}"
    result = score_checkpoint(parse_config(config), checkpoint, process, detections_path=path, with_fixed_ap=fixed)
    if result is not None:
        path.with_suffix(".result").write_text(json.dumps(result))

def share(process):
    config, checkpoint, *_ = jobs["shared"]
    config, model = parse_config(config), load_model(checkpoint)
    as_if = process._replace(rank=max(0, process.rank - 1))
    build_evaluation(config, build_val(config, process), model.classes, as_if).run(model.network)

def write_apart(process):
    own = folder / f"folder of {process.rank}"
    own.mkdir()
    (own / "found.npz.1.part").write_bytes(b"of a killed run")
    config, checkpoint, *_ = jobs["shared"]
    score_checkpoint(parse_config(config), checkpoint, process, detections_path=own / "found.npz")

def note_error(do, process):
    try:
        do(process)
    except ValueError as error:
        (folder / f"{do.__name__} {process.rank}.error").write_text(str(error))

for world_size, port in groups:
    if rank < world_size:
        os.environ |= {"WORLD_SIZE": str(world_size), "MASTER_PORT": str(port)}
        with process_group("cpu") as process:
            for name in jobs:
                if name not in ("shared", "sick"):
                    score(name, process)
            if world_size == 3:
                note_error(share, process)
                note_error(write_apart, process)
if rank < 3:
    os.environ |= {"WORLD_SIZE": "3", "MASTER_PORT": str(sick)}
    with process_group("cpu") as process:
        score("sick", process)
"""

# Images, protocol, network, suffix of the detections, with Fixed AP. In batches of 3 images: 5 batches, 3 and 1.
JOBS = {
    "13 images": (13, "lvis", "random", ".npz", True),
    "13 images that tie": (13, "lvis", "tied", ".json", True),
    "7 images that tie": (7, "coco", "tied", ".npz", False),
    "1 image": (1, "lvis", "random", ".json", True),
}


@pytest.fixture(scope="module")
def checkpoints(make_config, cpu, tmp_path_factory):
    """By name: of a network that has learned nothing, and the same with one score for all detections of a class."""
    folder = tmp_path_factory.mktemp("networks")
    train(make_config(folder, {"schedule": {"length": 1, "warmup_steps": 0}}), cpu)
    random = step_path(folder / "checkpoints", 1)
    state = load_checkpoint(random)
    state["model"]["head.logits.weight"].zero_()
    save_checkpoint(folder / "tied.pt", state)
    return {"random": str(random), "tied": str(folder / "tied.pt")}


@pytest.fixture(scope="module")
def jobs(make_config, shapes, checkpoints, tmp_path_factory):
    """By name: configuration, checkpoint, suffix, with Fixed AP."""
    folder = tmp_path_factory.mktemp("annotations")
    content = json.loads(shapes.val.read_text())

    def config(count, protocol, images=shapes.folder):
        path = folder / f"{count}.json"
        path.write_text(json.dumps(repeated(content, count)))
        return make_config("nowhere", {
            "data": {"val": {"annotations": str(path), "images": str(images)}}, "eval": {"protocol": protocol},
        })  # fmt: skip

    def job(count, protocol, network, *others):
        return config(count, protocol).model_dump(mode="json"), checkpoints[network], *others

    sick = config(7, "lvis", folder)
    for image in content["images"]:
        (folder / image["file_name"]).write_bytes((shapes.folder / image["file_name"]).read_bytes())
    (folder / "val_4.png").write_bytes(b"no picture")  # in the second of three batches
    return {name: job(*options) for name, options in JOBS.items()} | {
        "shared": job(7, "lvis", "random", ".npz", False),
        "sick": (sick.model_dump(mode="json"), checkpoints["random"], ".npz", False),
    }


def repeated(content, count):
    """So many images: those of `content` again and again, with their objects."""
    images, annotations = [], []
    for i in range(count):
        image = content["images"][i % len(content["images"])]
        images.append(image | {"id": 1000 - 7 * i})
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        annotations += [a | {"id": len(annotations) + 1 + n, "image_id": 1000 - 7 * i} for n, a in enumerate(mine)]
    return content | {"images": images, "annotations": annotations}


@pytest.fixture(scope="module")
def four(jobs, run_processes, free_port, tmp_path_factory):
    """The folder of what the processes have written; and, by rank, exit code and output of the last job, which fails."""
    folder = tmp_path_factory.mktemp("four processes")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "groups.json").write_text(json.dumps([*((n, free_port()) for n in WORLD_SIZES), free_port()]))
    return folder, *run_processes(4, "-c", PROCESS, folder)


@pytest.fixture(scope="module")
def alone(jobs, cpu, tmp_path_factory):
    """By job: the result and the path of the detections of one process."""
    folder, results = tmp_path_factory.mktemp("one process"), {}
    for name in JOBS:
        config, checkpoint, suffix, fixed = jobs[name]
        path = folder / f"{name}{suffix}"
        result = score_checkpoint(parse_config(config), checkpoint, cpu, detections_path=path, with_fixed_ap=fixed)
        results[name] = result, path
    return results


@pytest.mark.parametrize(("name", "world_size"), product(JOBS, WORLD_SIZES))
def test_processes_score_what_one_does_bit_for_bit(four, alone, name, world_size):
    folder, _, output = four
    path = folder / f"{name} on {world_size}.result"
    assert path.exists(), output
    expected = alone[name][0]
    assert path.read_text() == json.dumps(expected)
    assert expected["AP"] > 0  # something can differ
    assert ("AP_fixed" in expected) == JOBS[name][-1]


@pytest.mark.parametrize(("name", "world_size"), product(JOBS, WORLD_SIZES))
def test_processes_write_the_detections_of_one_byte_for_byte(four, alone, name, world_size):
    path = alone[name][1]
    assert (four[0] / f"{name} on {world_size}{path.suffix}").read_bytes() == path.read_bytes()


def test_detections_of_a_class_tie_over_processes_and_some_processes_have_no_batch(jobs, alone, cpu):
    with np.load(alone["7 images that tie"][1]) as found:
        for label in range(4):
            of_class = found["labels"] == label
            assert len(np.unique(found["scores"][of_class])) == 1
            assert len(np.unique(found["image_index"][of_class])) == 7
    config = parse_config(jobs["7 images that tie"][0])
    shares = [
        list(build_evaluation_loader(config, build_val(config, cpu), cpu._replace(rank=r, world_size=4)))
        for r in range(4)
    ]
    assert [[len(batch.images) for batch in share] for share in shares] == [[3], [3], [1], []]


def test_an_image_on_two_processes_is_an_error_on_all_of_them(four):
    folder, _, output = four
    errors = [(folder / f"share {rank}.error").read_text() for rank in range(3)]
    assert len(set(errors)) == 1, output
    assert errors[0].startswith("1 of 7 images were evaluated not at all, the first at index ")


def test_a_part_that_a_killed_run_has_left_is_not_taken_for_that_of_a_process_elsewhere(four):
    folder, _, output = four
    (path,) = folder.glob("write_apart*")
    assert path.name == "write_apart 0.error", output
    own = folder / "folder of 0" / "found.npz"
    assert path.read_text().startswith(f"{own}.1.part, {own}.2.part: not there, where that process should have kept")
    assert not list(own.parent.iterdir())


def test_no_process_hangs_and_none_ends_well_where_one_fails(four):
    folder, codes, output = four
    assert [code != 0 for code in codes] == [True, True, True, False], output
    assert "val_4.png" in output[1].splitlines()[-1]
    assert not list(folder.glob("sick*"))
