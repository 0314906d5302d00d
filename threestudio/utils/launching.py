"""What the command line does once its arguments are read: build, then run."""

import logging
import os
import shutil
import sys
import tempfile
import warnings
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

import threestudio
from threestudio.systems.base import BaseSystem
from threestudio.systems.utils import check_scheduler_lasts
from threestudio.utils.atomic_checkpoint import AtomicCheckpointIO, CheckpointsToTheEnd
from threestudio.utils.callbacks import (
    CodeSnapshotCallback,
    CommandSnapshot,
    ConfigSnapshotCallback,
    CustomProgressBar,
    LogsStepRate,
)
from threestudio.utils.config import load_config
from threestudio.utils.config_completion import Record, complete_config
from threestudio.utils.devices import get_rank, running_on, trainer_device
from threestudio.utils.errors import UserError, errors_begin_with
from threestudio.utils.extensions import load_extensions
from threestudio.utils.failures import RunSoFar, reported
from threestudio.utils.memory import keep_freed_memory
from threestudio.utils.misc import find_last_path, load_checkpoint
from threestudio.utils.project_files import config_file
from threestudio.utils.restarts import (
    checkpoint_to_restart_from,
    join_restarted_processes,
    restart_count,
    tell_torchrun,
)
from threestudio.utils.stopping import STOPPED_EXIT_CODE, NotesStopSignals, StoppedByHand, StopSignals, stop_line
from threestudio.utils.trainer_settings import checkpoint_arguments, trainer_arguments
from threestudio.utils.trial_folder import check_unused, owned_trial_folder


class NotesProgress(pl.Callback):
    """Keeps how far the run has come."""

    def __init__(self, so_far: RunSoFar) -> None:
        self.so_far = so_far

    def _start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.so_far.started = True

    on_validation_start = on_test_start = on_predict_start = _start

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.so_far.started = self.so_far.trained = True


@dataclass(frozen=True)
class Job:
    """What the command line and the config ask for, read and checked."""

    args: Namespace
    cfg: DictConfig
    trainer_args: dict[str, Any]
    checkpoint_args: dict[str, Any]
    so_far: RunSoFar
    signals: StopSignals


def run_reporting_errors(args: Namespace, overrides: list[str], n_gpus: int) -> int:
    """Runs; an error that is meant for the user is one line. Returns the exit code."""
    keep_freed_memory()
    so_far, signals = RunSoFar(), StopSignals()
    signals.install()
    try:
        run(args, overrides, n_gpus, so_far, signals)
        return 0
    except StoppedByHand:
        if get_rank() == 0:
            step = so_far.step if so_far.trained else None
            trains = args.train and not args.dry_run and so_far.cfg is not None
            print(stop_line(so_far.cfg, trains, args, step), file=sys.stderr)
        return STOPPED_EXIT_CODE
    except Exception as error:
        tell_torchrun(error)
        code = reported(error, so_far, args.verbose)
        if code is None:
            raise
        return code
    finally:
        signals.restore()


def run(args: Namespace, overrides: list[str], n_gpus: int, so_far: RunSoFar, signals: StopSignals) -> None:
    """Reads and checks everything, builds, and runs. Raises UserError before any work where something is wrong."""
    _set_up_messages(args.verbose)
    on_gpu = torch.cuda.is_available()
    if args.gpu is not None and not on_gpu:
        threestudio.info("No CUDA device: --gpu is ignored, running on the CPU.")
    load_extensions()
    load_extensions("custom")  # of the working folder, where it is another one
    args.config = [config_file(name) for name in args.config]
    cfg = load_config(*args.config, cli_args=overrides, n_gpus=n_gpus if on_gpu else 1)
    so_far.cfg = cfg
    if args.train and not args.dry_run:
        _go_on_after_restart(cfg)
    job = Job(args, cfg, trainer_arguments(cfg, on_gpu), checkpoint_arguments(cfg), so_far, signals)
    checkpoint = _checked_resume(cfg, args)
    if args.train:
        check_unused(cfg)
    with running_on(trainer_device(job.trainer_args["accelerator"], job.trainer_args["devices"])):
        _run(job, checkpoint)


def _run(job: Job, checkpoint: dict | None) -> None:
    """Builds and runs what has been checked, on the trainer's device."""
    args, cfg, so_far = job.args, job.cfg, job.so_far
    records = complete_config(cfg)
    pl.seed_everything(cfg.seed + get_rank(), workers=True, verbose=False)
    datamodule, system = build(cfg)
    if checkpoint is not None and not args.train:
        system.set_resume_status(checkpoint["epoch"], checkpoint["global_step"])
    if args.dry_run:
        dry_run(job, datamodule, system)
        return
    existed = os.path.exists(cfg.trial_dir) and not cfg.stamped_now
    try:
        with owned_trial_folder(cfg, trains=args.train):
            run_in_folder(job, datamodule, system, records)
    except BaseException:
        if not so_far.started and not existed and get_rank() == 0:  # the loggers' empty files are all there is
            shutil.rmtree(cfg.trial_dir, ignore_errors=True)
        raise
    threestudio.info(f"Results: {cfg.trial_dir}")


def run_in_folder(job: Job, datamodule: pl.LightningDataModule, system: BaseSystem, records: list[Record]) -> None:
    """Runs what was built, in the trial's folder."""
    args, cfg = job.args, job.cfg
    system.set_save_dir(os.path.join(cfg.trial_dir, "save"))
    if args.train and get_rank() == 0:
        for record in records:
            record(system)
    callbacks: list[pl.Callback] = [NotesProgress(job.so_far)]
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks.append(CustomProgressBar())
    loggers: Any = False
    if args.train:
        callbacks += training_callbacks(job)
        loggers = [
            TensorBoardLogger(cfg.trial_dir, name="tb_logs"),
            CSVLogger(cfg.trial_dir, name="csv_logs"),
            *system.get_loggers(),
        ]
    trainer = pl.Trainer(
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=cfg.trial_dir,
        enable_checkpointing=args.train,
        plugins=[AtomicCheckpointIO()],
        **job.trainer_args,
    )
    job.so_far.trainer = trainer
    join_restarted_processes("nccl" if job.trainer_args["accelerator"] == "gpu" else "gloo")
    execute(args, cfg, trainer, datamodule, system)


def execute(args: Namespace, cfg: DictConfig, trainer: pl.Trainer, datamodule: Any, system: BaseSystem) -> None:
    if args.train:
        trainer.fit(system, datamodule=datamodule, ckpt_path=cfg.resume)
        trainer.test(system, datamodule=datamodule, verbose=False)
    elif args.validate:
        trainer.validate(system, datamodule=datamodule, ckpt_path=cfg.resume, verbose=False)
    elif args.test:
        trainer.test(system, datamodule=datamodule, ckpt_path=cfg.resume, verbose=False)
    else:
        trainer.predict(system, datamodule=datamodule, ckpt_path=cfg.resume, return_predictions=False)


# ------------------------------------------------------------------------------------ building


def build(cfg: DictConfig) -> tuple[pl.LightningDataModule, BaseSystem]:
    data_class = _registered(cfg.data_type, "data_type", pl.LightningDataModule, "data module")
    system_class = _registered(cfg.system_type, "system_type", BaseSystem, "system")
    check_scheduler_lasts(cfg.system.get("scheduler"), cfg.trainer.get("max_steps", -1))
    datamodule = data_class(cfg.data)
    system = system_class(cfg.system, resumed=cfg.resume is not None)
    system.run_seed = cfg.seed
    return datamodule, system


def _registered(name: str, key: str, base: type, kind: str) -> type:
    if not name:
        raise UserError(f"{key}: the registered name of a {kind} is required")
    with errors_begin_with(key):
        found = threestudio.find(name)
    if not issubclass(found, base):
        raise UserError(f"{key}: '{name}' is not a {kind}")
    return found


def training_callbacks(job: Job) -> list[pl.Callback]:
    cfg, stop = job.cfg, NotesStopSignals(job.signals)
    return [
        stop,
        CheckpointsToTheEnd(stop, dirpath=os.path.join(cfg.trial_dir, "ckpts"), **job.checkpoint_args),
        LearningRateMonitor(logging_interval="step"),
        LogsStepRate(),
        CodeSnapshotCallback(os.path.join(cfg.trial_dir, "code")),
        ConfigSnapshotCallback(job.args.config, cfg, os.path.join(cfg.trial_dir, "configs")),
        CommandSnapshot(os.path.join(cfg.trial_dir, "cmd.txt")),
    ]


def _go_on_after_restart(cfg: DictConfig) -> None:
    """Sets `resume` where torchrun has started this run anew, to the last checkpoint of its own."""
    folder = os.path.join(cfg.trial_dir, "ckpts")
    own = checkpoint_to_restart_from(folder)
    if own is not None:
        cfg.resume = own
    if restart_count() > 0:
        where = f"going on from {own}" if own else f"no last.ckpt of this run in {folder}, beginning anew"
        threestudio.info(f"Restart {restart_count()} by torchrun: {where}")


def _checked_resume(cfg: DictConfig, args: Namespace) -> dict | None:
    """The checkpoint of `resume=`, read whole: it is known to be good before any work."""
    cfg.resume = cfg.resume or None  # resume="" is none
    if cfg.resume is None:
        if args.export and not cfg.system.get("weights"):
            raise UserError("resume: --export needs resume=<checkpoint>")
        return None
    try:
        cfg.resume = find_last_path(cfg.resume)
        checkpoint = load_checkpoint(cfg.resume)
    except (ValueError, OSError) as error:
        raise UserError(f"resume: {error}") from error
    needed: dict[str, type] = {"state_dict": dict, "epoch": int, "global_step": int}
    if args.train:
        needed.update(optimizer_states=list, loops=dict)
    content = checkpoint if isinstance(checkpoint, dict) else {}
    missing = [key for key, kind in needed.items() if not isinstance(content.get(key), kind)]
    missing += ["fit_loop in loops"] if args.train and not missing and "fit_loop" not in content["loops"] else []
    if missing:
        raise UserError(f"resume: {cfg.resume} is not a checkpoint of a run: no {missing[0]}")
    return {key: content[key] for key in ("epoch", "global_step")}


# ------------------------------------------------------------------------------------- dry run


def dry_run(job: Job, datamodule: pl.LightningDataModule, system: BaseSystem) -> None:
    """Builds what a run builds before its first step, and prints the config.

    Training of no steps runs the real way up to there: data, optimizers, prompts and guidance, and
    the checkpoint to resume from. What a system may write on that way goes to a folder that is
    removed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        system.set_save_dir(scratch)
        trainer = pl.Trainer(
            **{**job.trainer_args, "max_steps": 0, "num_sanity_val_steps": 0, "enable_progress_bar": False},
            callbacks=[NotesProgress(job.so_far)],
            logger=False,
            enable_checkpointing=False,
            default_root_dir=scratch,
        )
        if job.args.train:
            trainer.fit(system, datamodule=datamodule, ckpt_path=job.cfg.resume)
    print(OmegaConf.to_yaml(job.cfg, resolve=True), end="")


# ------------------------------------------------------------------------------------ messages


_UNHELPFUL_WARNINGS = (
    ".*does not have many workers.*",  # cameras are drawn in the process itself
    ".*`IterableDataset` has `__len__` defined.*",
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run writes where it did
    ".*your dataloader is not resumable.*",  # KeyedLoader resumes
    ".*The `srun` command is available.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*predict returned None.*",
    ".*Trying to infer the `batch_size`.*",  # figures are logged by step, not averaged by size
    r".*module\(s\) in eval mode at the start of training.*",  # frozen parts of a system
    ".*Using ModelCheckpoint with manual optimization.*",  # after the step is what is wanted
)


def _set_up_messages(verbose: bool) -> None:
    threestudio.logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        for module in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
            logging.getLogger(module).setLevel(logging.WARNING)
        for message in _UNHELPFUL_WARNINGS:
            warnings.filterwarnings("ignore", message)
