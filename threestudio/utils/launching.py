"""What the command line does once its arguments are read: build, then run."""

import inspect
import logging
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from argparse import Namespace
from typing import Any, Iterable, Optional

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

import threestudio
from threestudio.systems.base import BaseSystem
from threestudio.utils.atomic_checkpoint import AtomicCheckpointIO, CheckpointsToTheEnd
from threestudio.utils.callbacks import (
    CodeSnapshotCallback,
    ConfigSnapshotCallback,
    CustomProgressBar,
)
from threestudio.utils.config import load_config
from threestudio.utils.devices import get_rank, running_on, trainer_device
from threestudio.utils.errors import UserError, with_suggestion
from threestudio.utils.extensions import ExtensionError, load_extensions
from threestudio.utils.memory import keep_freed_memory
from threestudio.utils.misc import find_last_path, load_checkpoint
from threestudio.utils.restarts import (
    checkpoint_to_restart_from,
    join_restarted_processes,
    restart_count,
)

USAGE_EXIT_CODE = 2
FAILURE_EXIT_CODE = 1


class WorkStarted(pl.Callback):
    """Knows whether the run got past building: errors before are the user's, later ones bugs."""

    def __init__(self) -> None:
        self.yes = False

    def _start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.yes = True

    on_train_start = on_validation_start = on_test_start = on_predict_start = _start


def run_reporting_errors(args: Namespace, overrides: list[str], n_gpus: int) -> int:
    """Runs; an error in what the user gave is one line and exit code 2. Returns the exit code."""
    keep_freed_memory()
    started = WorkStarted()
    try:
        run(args, overrides, n_gpus, started)
        return 0
    except UserError as error:
        return _report(error, args.verbose)
    except ConnectionError as error:  # to another process of the run, which is gone: no bug of this one
        return _report(error, args.verbose, FAILURE_EXIT_CODE)
    except (ValueError, OSError, ExtensionError, MisconfigurationException) as error:
        if started.yes:
            raise
        return _report(error, args.verbose)
    except RuntimeError as error:
        if started.yes or "loading state_dict" not in str(error):
            raise
        return _report(error, args.verbose)


def _report(error: Exception, verbose: bool, code: int = USAGE_EXIT_CODE) -> int:
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    line = " ".join(str(error).split()) or type(error).__name__
    print(f"error: {line}", file=sys.stderr)
    return code


def run(args: Namespace, overrides: list[str], n_gpus: int, started: WorkStarted) -> None:
    _set_up_messages(args.verbose)
    on_gpu = torch.cuda.is_available()
    if args.gpu is not None and not on_gpu:
        threestudio.info("No CUDA device: --gpu is ignored, running on the CPU.")
    load_extensions()
    load_extensions("custom")  # of the working folder, where it is another one
    cfg = load_config(*args.config, cli_args=overrides, n_gpus=n_gpus if on_gpu else 1)
    if args.train and not args.dry_run:
        _go_on_after_restart(cfg)
    checkpoint = _checked_resume(cfg, args)
    trainer_args = trainer_arguments(cfg, on_gpu)
    with running_on(trainer_device(trainer_args["accelerator"], trainer_args["devices"])):
        _run(args, cfg, trainer_args, checkpoint, started)


def _run(
    args: Namespace, cfg: DictConfig, trainer_args: dict[str, Any], checkpoint: Optional[dict], started: WorkStarted
) -> None:
    check_arguments(ModelCheckpoint, cfg.checkpoint, "checkpoint", ("dirpath",))
    pl.seed_everything(cfg.seed + get_rank(), workers=True, verbose=False)
    datamodule, system = build(cfg)
    if checkpoint is not None and not args.train:
        system.set_resume_status(checkpoint["epoch"], checkpoint["global_step"])
    if args.dry_run:
        dry_run(args, cfg, datamodule, system, trainer_args, started)
        return
    system.set_save_dir(os.path.join(cfg.trial_dir, "save"))
    callbacks: list[pl.Callback] = [started]
    if cfg.trainer.get("enable_progress_bar", True):
        callbacks.append(CustomProgressBar())
    loggers: Any = False
    if args.train:
        callbacks += training_callbacks(args.config, cfg)
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
        **trainer_args,
    )
    existed = os.path.exists(cfg.trial_dir)
    join_restarted_processes("nccl" if trainer_args["accelerator"] == "gpu" else "gloo")
    try:
        execute(args, cfg, trainer, datamodule, system)
    except Exception:
        if not started.yes and not existed:  # the loggers' empty files are all there is
            shutil.rmtree(cfg.trial_dir, ignore_errors=True)
        raise
    threestudio.info(f"Results: {cfg.trial_dir}")


def execute(
    args: Namespace, cfg: DictConfig, trainer: pl.Trainer, datamodule: Any, system: BaseSystem
) -> None:
    if args.train:
        trainer.fit(system, datamodule=datamodule, ckpt_path=cfg.resume)
        trainer.test(system, datamodule=datamodule, verbose=False)
    elif args.validate:
        trainer.validate(system, datamodule=datamodule, ckpt_path=cfg.resume, verbose=False)
    elif args.test:
        trainer.test(system, datamodule=datamodule, ckpt_path=cfg.resume, verbose=False)
    else:
        trainer.predict(
            system, datamodule=datamodule, ckpt_path=cfg.resume, return_predictions=False
        )


# ------------------------------------------------------------------------------------ building


def build(cfg: DictConfig) -> tuple[pl.LightningDataModule, BaseSystem]:
    data_class = _registered(cfg.data_type, "data_type", pl.LightningDataModule, "data module")
    system_class = _registered(cfg.system_type, "system_type", BaseSystem, "system")
    datamodule = data_class(cfg.data)
    system = system_class(cfg.system, resumed=cfg.resume is not None)
    system.run_seed = cfg.seed
    return datamodule, system


def _registered(name: str, key: str, base: type, kind: str) -> type:
    if not name:
        raise UserError(f"{key}: the registered name of a {kind} is required")
    try:
        found = threestudio.find(name)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if not issubclass(found, base):
        raise UserError(f"{key}: '{name}' is not a {kind}")
    return found


def check_arguments(target: type, given: Iterable[str], key: str, reserved: tuple = ()) -> None:
    """Raises UserError where `given` has a name that the constructor of `target` does not take."""
    known = set(inspect.signature(inspect.unwrap(target.__init__)).parameters) - {"self"}
    for name in given:
        if name in reserved:
            raise UserError(f"{key}.{name}: is set by the launcher")
        if name not in known:
            message = f"unknown key '{key}.{name}' (of {target.__name__})"
            raise UserError(with_suggestion(message, name, known - set(reserved)))


_LAUNCHER_SETS = ("callbacks", "logger", "plugins", "default_root_dir", "enable_checkpointing")


def trainer_arguments(cfg: DictConfig, on_gpu: bool) -> dict[str, Any]:
    """The config's arguments of the Trainer, with the devices that this machine has."""
    check_arguments(pl.Trainer, cfg.trainer, "trainer", _LAUNCHER_SETS)
    arguments = OmegaConf.to_container(cfg.trainer, resolve=True)
    for name in ("max_steps", "max_epochs"):
        value = arguments.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"trainer.{name}: expected int, got {value!r} ({type(value).__name__})")
    arguments.setdefault("enable_model_summary", False)
    arguments.setdefault("inference_mode", False)  # normals are gradients, in evaluation too
    arguments.setdefault("accelerator", "gpu" if on_gpu else "cpu")
    if not on_gpu:
        arguments["accelerator"] = "cpu"
    arguments.setdefault("devices", -1 if arguments["accelerator"] == "gpu" else 1)
    processes = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun, as LOCAL_WORLD_SIZE: those of this machine
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if processes > here:
        arguments.setdefault("num_nodes", processes // here)
    if arguments["accelerator"] == "cpu":
        arguments["devices"] = here
        if processes > 1:
            arguments["strategy"] = "ddp"
        if str(arguments.get("precision", 32)) in ("16", "16-mixed", "16-true"):
            threestudio.info(f"precision {arguments['precision']} is for GPUs: 32 on the CPU.")
            arguments["precision"] = 32
    return arguments


def training_callbacks(config_paths: list[str], cfg: DictConfig) -> list[pl.Callback]:
    checkpoint_args = OmegaConf.to_container(cfg.checkpoint, resolve=True)
    # A resumed run overwrites its own last.ckpt instead of writing a last-v1.ckpt beside it.
    checkpoint_args.setdefault("enable_version_counter", False)
    return [
        CheckpointsToTheEnd(dirpath=os.path.join(cfg.trial_dir, "ckpts"), **checkpoint_args),
        LearningRateMonitor(logging_interval="step"),
        CodeSnapshotCallback(os.path.join(cfg.trial_dir, "code"), use_version=False),
        ConfigSnapshotCallback(
            config_paths, cfg, os.path.join(cfg.trial_dir, "configs"), use_version=False
        ),
        CommandSnapshot(os.path.join(cfg.trial_dir, "cmd.txt")),
    ]


class CommandSnapshot(pl.Callback):
    """Keeps the command lines that this trial was run with, one a line."""

    def __init__(self, path: str) -> None:
        self.path = path

    @rank_zero_only
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("python " + " ".join(sys.argv) + "\n")


def _go_on_after_restart(cfg: DictConfig) -> None:
    """Sets `resume` where torchrun has started this run anew, to the last checkpoint of its own."""
    folder = os.path.join(cfg.trial_dir, "ckpts")
    own = checkpoint_to_restart_from(folder)
    if own is not None:
        cfg.resume = own
    if restart_count() > 0:
        where = f"going on from {own}" if own else f"no last.ckpt of this run in {folder}, beginning anew"
        threestudio.info(f"Restart {restart_count()} by torchrun: {where}")


def _checked_resume(cfg: DictConfig, args: Namespace) -> Optional[dict]:
    """The checkpoint of `resume=`, read whole: it is known to be good before any work."""
    if cfg.resume is None:
        if args.export and not cfg.system.get("weights"):
            raise UserError("resume: --export needs resume=<checkpoint>")
        return None
    try:
        cfg.resume = find_last_path(cfg.resume)
        checkpoint = load_checkpoint(cfg.resume)
    except (ValueError, OSError) as error:
        raise UserError(f"resume: {error}") from error
    needed = ["state_dict", "epoch", "global_step"]
    needed += ["optimizer_states", "loops"] if args.train else []
    missing = [key for key in needed if key not in checkpoint]
    if missing:
        raise UserError(f"resume: {cfg.resume} is not a checkpoint of a run: no {missing[0]}")
    return {key: checkpoint[key] for key in ("epoch", "global_step")}


# ------------------------------------------------------------------------------------- dry run


def dry_run(
    args: Namespace,
    cfg: DictConfig,
    datamodule: pl.LightningDataModule,
    system: BaseSystem,
    trainer_args: dict[str, Any],
    started: WorkStarted,
) -> None:
    """Builds what a run builds before its first step, and prints the config.

    Training of no steps runs the real way up to there: data, optimizers, prompts and guidance, and
    the checkpoint to resume from. What a system may write on that way goes to a folder that is
    removed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        system.set_save_dir(scratch)
        ModelCheckpoint(dirpath=scratch, **OmegaConf.to_container(cfg.checkpoint, resolve=True))
        trainer = pl.Trainer(
            **{
                **trainer_args,
                "max_steps": 0,
                "num_sanity_val_steps": 0,
                "enable_progress_bar": False,
            },
            callbacks=[started],
            logger=False,
            enable_checkpointing=False,
            default_root_dir=scratch,
        )
        if args.train:
            trainer.fit(system, datamodule=datamodule, ckpt_path=cfg.resume)
    print(OmegaConf.to_yaml(cfg, resolve=True), end="")


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
