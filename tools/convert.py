"""Turn a detector of another project into a checkpoint of ours, or one of ours into a state dict for others."""

import argparse
import sys
from pathlib import Path

# As in detector/conversion/importing.py and exporting.py, which need torch.
SOURCES = ("official", "torchvision", "detectron2", "mmdetection")
FORMATS = ("plain", "official", "torchvision")


def main() -> None:
    arguments = _arguments()
    from longshot.detector.conversion.exporting import Export, export_checkpoint
    from longshot.detector.conversion.importing import Import, import_checkpoint
    from longshot.detector.conversion.key_table import key_table
    from longshot.detector.errors import readable_errors

    with readable_errors():
        if arguments.command == "import":
            done: Import | Export = import_checkpoint(
                arguments.file, arguments.out, annotations=arguments.annotations, source=arguments.source,
                config=arguments.config, with_loss_state=arguments.with_loss_state,
            )  # fmt: skip
            print(f"{arguments.file}: taken for {done.source}")
        else:
            done = export_checkpoint(arguments.checkpoint, arguments.out, kind=arguments.format)
    print(key_table(done.rows))
    for note in done.notes:
        print(note)
    if not done.written:
        sys.exit("error: nothing is written: the table has keys that are missing, misshaped, or without a place")
    print(f"written: {', '.join(map(str, done.written))}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="import|export")
    importer = commands.add_parser("import", help="another project's file into a checkpoint of ours")
    importer.add_argument("file", type=Path, metavar="IN", help=".pth or .pt, .pkl of numpy arrays, .safetensors")
    importer.add_argument("out", type=Path, metavar="OUT", help="the checkpoint, .pt; its configuration gets .yaml")
    importer.add_argument(
        "--annotations", type=Path, metavar="FILE", required=True,
        help="COCO or LVIS JSON of the dataset the detector was trained on: ids, names and frequencies of the classes",
    )  # fmt: skip
    importer.add_argument("--from", dest="source", choices=SOURCES, help="default: as the keys of the file tell")
    importer.add_argument(
        "--config", type=Path, metavar="FILE", help="convert into its model; default: the one that the file tells"
    )
    importer.add_argument("--with-loss-state", action="store_true", help="keep the gradients that EFL has collected")
    exporter = commands.add_parser("export", help="a checkpoint of ours into a state dict")
    exporter.add_argument("--checkpoint", type=Path, metavar="PATH", required=True)
    exporter.add_argument("--out", type=Path, metavar="FILE", required=True, help=".safetensors, .pth or .pt")
    exporter.add_argument("--format", choices=FORMATS, default="plain", help="whose keys; plain (default): ours")
    return parser.parse_args()


if __name__ == "__main__":
    main()
