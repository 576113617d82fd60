"""A training run, from its configuration to the table at the end. From Python: `train_detector`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config.schema import Config


def train_detector(config: "Path | str | Config", overrides: Iterable[str] = (), *, resume: str | None = None) -> Path:
    """Train as `longshot train` does, evaluate, and print the table; returns the run folder.

    In it are metrics.json, with the numbers of the table and a row per class, and checkpoints/best.pt, which
    `longshot.detector.inference.load_model` takes. Under torchrun every process calls this.

    Args:
        config: the path of a YAML file or a Config.
        overrides: "section.key=value" as on the command line; not with a Config.
        resume: "auto" to go on from the newest checkpoint of the run folder, or the path of a checkpoint.

    Raises:
        ConfigError, DataError, CheckpointError, FloatingPointError: with what is wrong, where, and what to do.
    """
    # Torch takes seconds to import, and the settings of this package are read by programs that need none.
    from ..config.schema import Config, load_config
    from ..system.distributed import process_group
    from .loop import train

    if not isinstance(config, Config):
        config = load_config(Path(config), overrides)
    elif list(overrides):
        raise TypeError("overrides go with the name of a configuration file; change the Config itself")
    with process_group(config.device) as process:
        train(config, process, resume)
    return Path(config.output)
