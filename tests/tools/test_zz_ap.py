import json
def test_x(start, trained, write_config, tmp_path):
    write_config(tmp_path)
    L=lambda f:[r["loss"] for r in map(json.loads,(f/"metrics.jsonl").read_text().splitlines()) if r["kind"]=="train"]
    a=L(trained.folder)
    for n,o in (("pass2",["train.images_per_pass=2"]),("pass1",["train.images_per_pass=1"]),("threads",[])):
        d = start("train","--config","tiny.yaml",f"output={n}","eval.pictures=0",*o,cwd=tmp_path, **({"OMP_NUM_THREADS":"2"} if n=="threads" else {}))
        print(n, [f"{abs(x/y-1):.0e}" for x,y in zip(L(tmp_path/n),a)][:24])
