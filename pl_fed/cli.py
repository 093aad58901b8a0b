"""The command line: ``python cli.py fit|validate|test|predict|export`` and the commands of `COMMANDS`.

It is LightningCLI with our defaults (`configs/defaults.yaml`), a run folder and loggers made from ``--run.*``, and the
`export` command; other commands stand beside it. A user's error ends in one sentence; ``PL_FED_TRACEBACK=1`` shows
where it came from.
"""

import logging
import os
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pydoc import locate
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from pl_fed import strategy as strategy  # registers the name `federated`
from pl_fed.assets import AssetFetchError, AssetNotFoundError
from pl_fed.checkpoint_io import AtomicCheckpointIO
from pl_fed.cli_parser import CommandParser, FederatedArgumentParser, own_sentence
from pl_fed.cli_tracking import FallbackWandbLogger, finish_tracking
from pl_fed.cli_trainer import FederatedTrainer
from pl_fed.errors import CheckpointError, FederatedConfigError, FishedModelError, TooFewClientsError
from pl_fed.modules.base import LoraModule
from pl_fed.modules.checkpoint import check_class
from pl_fed.modules.export import export_adapter
from pl_fed.privacy.pairwise.errors import ProtocolError
from pl_fed.rules.table import LEGEND, markdown, shipped_rules

DEFAULTS = Path(__file__).parent / "configs" / "defaults.yaml"
COMMANDS = {  # beside Lightning's; imported when called
    "compare": ("pl_fed.compare.command:main", "runs rules and controls over seeds and writes tables and pictures"),
    "audit": ("pl_fed.compare.audit:main", "does so with defences, and writes a page on what each stops and costs"),
    "rules": ("pl_fed.cli:print_rules", "prints the properties of every rule"),
    "agreement": ("pl_fed.cli_ratings:run_agreement", "says how far raters of images agree"),
    "scenes": ("pl_fed.cli_ratings:run_scenes", "draws synthetic pictures with known scores"),
    "score": ("pl_fed.isa.commands.score:main", "tells how many entities and how much of a story images have"),
    "select": ("pl_fed.isa.commands.select:main", "makes a sheet of the best images"),
    "extract": ("pl_fed.isa.commands.extract:main", "writes texts about images"),
    "rate": ("pl_fed.isa.commands.rate:main", "makes a page to rate images"),
}
HELP = {
    "description": "Federated fine-tuning of LoRA adapters in a Lightning Trainer, from YAML.",
    "epilog": "More commands, each with `--help`: "
    + "; ".join(f"`{name}` {what}" for name, (_, what) in COMMANDS.items()),
}
USER_ERRORS = (
    AssetFetchError,
    AssetNotFoundError,
    CheckpointError,
    FederatedConfigError,
    FishedModelError,
    MisconfigurationException,
    ProtocolError,
    OSError,  # a full disk, a folder that cannot be written
    TooFewClientsError,
)


@dataclass(frozen=True)
class RunConfig:
    """Where a run goes and what tracks it; without effect where ``trainer.logger`` is set.

    Args:
        name: Name of the experiment; its runs are ``<folder>/<name>/version_<n>``.
        folder: Folder of all runs.
        version: Version to write to; None takes the next free one.
        wandb: Track in Weights & Biases too. It is offline unless WANDB_MODE says otherwise or an API key is set, and
            where W&B cannot be reached.
        project: The project there.
        group: The group there; None takes `name`. A resumed run is a new run of the same group.
        export_adapter: After `fit`, write the PEFT adapter into the run folder.
    """

    name: str = "run"
    folder: str = "runs"
    version: str | None = None
    wandb: bool = True
    project: str = "pl_fed"
    group: str | None = None
    export_adapter: bool = True


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run folder and into the loggers' hyperparameters."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach the configuration to W&B."""
        import yaml

        text = self.parser.dump(self.config, skip_none=False)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(yaml.safe_load(text), allow_val_change=True)


class FederatedCLI(LightningCLI):
    """LightningCLI with the run's folder, loggers and defaults."""

    def __init__(self, args: ArgsType = None, **kwargs: Any) -> None:
        defaults = {"default_config_files": [str(DEFAULTS)]}
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            trainer_class=FederatedTrainer,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_kwargs={**{command: dict(defaults) for command in self.subcommands()}, **HELP},
            args=args,
            **kwargs,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's commands and `export`."""
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser whose errors are one sentence."""
        self.parser_class = FederatedArgumentParser
        return super().init_parser(**kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--run.*``."""
        parser.add_class_arguments(RunConfig, "run")

    @property
    def run(self) -> RunConfig:
        """Where this run goes."""
        found = self._get(self.config_init, "run")
        return found if isinstance(found, RunConfig) else RunConfig(**vars(found))

    def _parse_ckpt_path(self) -> None:
        """Refuse a broken checkpoint or another module's, before Lightning puts its hyperparameters over ours."""
        options = self.config[self.config.subcommand] if self.config.get("subcommand") else {}
        path, model = options.get("ckpt_path"), options.get("model")
        if path in ("best", "last", "hpc"):  # Lightning would look in this run's folder, which is new
            raise FederatedConfigError(
                f"Expected the path of a checkpoint in `--ckpt_path` but got '{path}': each run has its own folder; "
                "name the file, for example 'runs/quickstart/version_0/checkpoints/last.ckpt'."
            )
        if path and Path(path).is_file():
            checkpoint = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
            if model is not None and isinstance(module := locate(model.class_path), type):
                check_class(checkpoint, module)
        super()._parse_ckpt_path()

    def instantiate_classes(self) -> None:
        """Make the objects; of a refused value only its own sentence is shown, not the parser's search for a type."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            found = own_sentence(str(error))
            if isinstance(error, FederatedConfigError) or found is None:
                raise
            raise FederatedConfigError(found) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with the run's loggers unless others are set; what is switched off leaves the defaults."""
        given = self._get(self.config_init, "trainer", default={})
        unwanted: tuple[type, ...] = ()
        unwanted += (ProgressBar,) if given.get("enable_progress_bar") is False else ()
        unwanted += (Checkpoint,) if given.get("enable_checkpointing") is False else ()
        given["callbacks"] = [c for c in given.get("callbacks") or [] if not isinstance(c, unwanted)]
        if given.get("logger") in (None, True):
            kwargs["logger"] = self._loggers(self.run) if self.subcommand != "export" else False
        return super().instantiate_trainer(**kwargs)

    def _loggers(self, run: RunConfig) -> list[Logger]:
        csv = CSVLogger(run.folder, run.name, run.version)
        loggers: list[Logger] = [csv]
        if run.wandb:
            home = Path(run.folder, run.name)  # wandb adds a folder `wandb`, and wants its parent to exist
            home.mkdir(parents=True, exist_ok=True)
            mode = os.environ.get("WANDB_MODE") or ("online" if "WANDB_API_KEY" in os.environ else "offline")
            os.environ.setdefault("WANDB_SILENT", "true")
            logger = FallbackWandbLogger(
                save_dir=home,
                project=run.project,
                group=run.group or run.name,
                name=run.name,
                offline=mode == "offline",
            )
            loggers.append(logger)
        return loggers

    def after_fit(self) -> None:
        """Write the adapter into the run folder."""
        trainer, run = self.trainer, self.run
        if not run.export_adapter or vars(trainer).get("fast_dev_run") or not isinstance(self.model, LoraModule):
            return
        if self.model.lora is None:  # trained whole
            return
        home = trainer.log_dir if trainer.loggers else None  # every process has to ask; without a logger there is none
        if trainer.is_global_zero and home:
            folder = Path(home) / "adapter"
            export_adapter(self.model, folder, overwrite=True)
            rank_zero_info(f"Adapter: {folder}  (peft.PeftModel.from_pretrained)")


def _quiet() -> None:
    """Keep advice that does not concern a user of this command line off the terminal."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage() and "TPU available" not in record.getMessage()
    )
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "The dirpath has changed from")  # a resumed run has a folder of its own
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*number of training batches.*is smaller than the logging interval.*")


def print_rules(args: list[str]) -> None:
    """Print the table of rules."""
    if args and args[0] not in ("-h", "--help"):
        raise FederatedConfigError(f"Expected nothing after `rules` but got '{args[0]}': drop it.")
    print(f"{markdown(shipped_rules())}\n\n{LEGEND}")


def main(args: ArgsType = None) -> None:
    """Run the command line; exit code 1 with one sentence for an error that a user can mend."""
    _quiet()
    given = sys.argv[1:] if args is None else args
    try:
        if isinstance(given, list) and given and given[0] in COMMANDS:
            place, _, function = COMMANDS[given[0]][0].partition(":")
            parser = [CommandParser] if place.startswith("pl_fed.isa.") else []  # these lie below the command line
            getattr(import_module(place), function)(given[1:], *parser)
        else:
            FederatedCLI(args)
            finish_tracking()
    except USER_ERRORS as error:
        if os.environ.get("PL_FED_TRACEBACK"):
            raise
        sys.exit(f"pl_fed: {error}")
