"""The command `longshot`: one sub-command for each tool."""

import importlib
import sys

# Name, module, what it does. A module is imported when its command is called: most need torch, which takes seconds.
COMMANDS = (
    ("train", "train", "train a detector, evaluate it, and print its AP table; or go on with a run"),
    ("eval", "eval", "evaluate a checkpoint, score saved detections, write a report, compare runs"),
    ("predict", "predict", "draw detections on images, and write them as JSON"),
    ("check", "check_dataset", "show everything that is wrong with a dataset"),
    ("show", "show_dataset", "draw what the model sees of a dataset, and the histogram of its classes"),
    ("convert", "convert", "checkpoints: other projects' into ours, ours for others"),
    ("annotations", "convert_annotations", "data: annotations of Open Images, Pascal VOC and YOLO as JSON"),
    ("plan", "plan", "memory and messages of a training step on N GPUs, without a GPU"),
    ("bench", "bench", "what the parts cost, beside other people's"),
    ("equality", "equality", "the same steps on 1, 2 and 4 processes, and how far apart they end"),
    ("soak", "soak", "kill a small run at random moments, and compare what it ends with"),
)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return
    modules = {command: module for command, module, _ in COMMANDS}
    if name not in modules:
        sys.exit(f"longshot: there is no command {name!r}; known: {', '.join(modules)}")
    sys.argv = [f"longshot {name}", *sys.argv[2:]]
    importlib.import_module(f"longshot.tools.{modules[name]}").main()


def _help() -> str:
    commands = "\n".join(f"  {name:13}{what}" for name, _, what in COMMANDS)
    return (
        "usage: longshot COMMAND ...\n\n"
        "One-stage object detection for long-tailed data.\n\n"
        f"{commands}\n\n"
        "longshot COMMAND --help tells more.\n"
        "example: longshot train --config quickstart"
    )


if __name__ == "__main__":
    main()
