import re


def test_plan_prints_memory_and_messages(call, write_config, tmp_path):
    config = write_config(tmp_path)
    done = call("plan", "--config", config, "--gpus", 2, "--classes", 30, "--size", "60x90", cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == f"{config}: thin, 30 classes, images of 60x90 padded to 64x96: 126 anchors each"
    assert lines[1] == "2 GPUs x 1 passes x 2 images = train.batch_size 4"
    for name in ("optimizer state", "logits", "gradient of logits", "chunk of the loss", "all tensors"):
        assert any(re.match(rf"  {name} +[\d.]+ +[\d.]+$", line) for line in lines), name
    sums = next(line.split() for line in lines if line.startswith("  sums per class (float64)"))
    assert sums[4:7] == ["all-reduce", "1", "480"]  # 2 x 30 x 8
    assert "Assumed, not measured: 10% more memory" in done.out
    assert "warning" not in done.out
    assert "seconds" not in done.out, "they would rest on assumed rates"


def test_plan_takes_classes_and_size_from_the_configuration(call, write_config, tmp_path):
    done = call("plan", "--config", write_config(tmp_path), "--gpus", 1, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "thin, 4 classes, images of 64x96 padded to 64x96" in done.out.splitlines()[0]
    assert "communication per step" not in done.out


def test_plan_warns_of_what_does_not_fit(call, write_config, tmp_path):
    options = ("--gpus", 2, "--classes", 30, "--memory", 2)
    done = call("plan", "--config", write_config(tmp_path), *options, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.count("does not fit") == 2
    assert "of 2048 MB; a smaller train.images_per_pass" in done.out


def test_bad_plans_are_told(call, write_config, is_error, tmp_path):
    config = write_config(tmp_path)
    assert is_error(
        call("plan", "--config", config, "--gpus", 3, "--classes", 3, cwd=tmp_path), "not divisible by 3 processes"
    )
    missing = call("plan", "--config", config, "--gpus", 2, "data.val.annotations=null", cwd=tmp_path)
    assert is_error(missing, "data.val.annotations: not set", "or say how many classes there are: --classes K")
    wrong = call("plan", "--config", config, "--gpus", 0, cwd=tmp_path)
    assert (wrong.code, wrong.err.splitlines()[-1]) == (
        2,
        "plan.py: error: argument --gpus: expected a whole number of at least 1, found '0'",
    )
