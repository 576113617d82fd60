"""The training loop. The whole of it is `train`."""

from ..config.schema import Config
from ..system.distributed import Process
from ..training.step import NonFiniteStep, optimize
from .lifecycle import open_run


def train(config: Config, process: Process, resume: str | None = None) -> bool:
    """Train as `config` says, evaluate, and print the table; every process of the run calls this.

    What is evaluated is saved first: it may be the best, and evaluating it may take long. The end is always saved and
    evaluated. A run that is asked to stop saves after the step which it is in, and evaluates nothing more.

    Args:
        resume: None for a new run, or one that goes on without being asked (see `resume.what_to_resume`); "auto" to go
            on from the newest checkpoint in the run folder, or to start if there is none; or the path of a checkpoint.
            What the folder holds of later steps is removed.

    Returns:
        Whether the run is complete: False if a process was asked to stop, and it can be gone on with.

    Raises:
        ConfigError: the run folder holds another run, or the configuration does not fit data, machine or checkpoint.
        DataError, CheckpointError, NonFiniteStep: with what is wrong, where, and what to do.
    """
    with open_run(config, process, resume) as session:
        run, schedule, stop = session.run, session.schedule, session.stop
        if session.evaluation_was_missed():
            session.evaluate()
        run.network.train()
        for batch in session.batches():
            rate = schedule.learning_rate(run.step)
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            try:
                numbers = optimize(
                    run, session.model, batch, process, images_per_pass=session.images_per_pass,
                    precision=config.train.precision, clip_norm=config.optimizer.clip_norm, stop=stop,
                )  # fmt: skip
                run.skipped_in_a_row = 0
            except NonFiniteStep as step:
                numbers = session.skip_or_raise(step, batch)
            run.step += 1
            session.log.training(run.step, {**numbers, "learning_rate": rate}, run.criterion.classification)
            due = schedule.evaluates_after(run.step)
            if due or stop.agreed or run.step % schedule.save_every == 0:
                session.save()
            if stop.agreed:
                break
            if due:
                session.evaluate()
                run.network.train()
        session.finish()
    return not stop.agreed
