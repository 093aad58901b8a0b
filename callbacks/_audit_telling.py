"""Where the report of an audit goes: the loggers, the console, the run's folder."""

from typing import Any

from rich import get_console

from pl_fed._lightning import Trainer
from pl_fed.attacks.report import AuditReport
from pl_fed.callbacks._audit_logging import log_clients
from pl_fed.callbacks._run_folder import replace_text, run_folder, writes_files
from pl_fed.context import RoundContext


def tell(trainer: Trainer, report: AuditReport, suffix: str = "") -> None:
    """Give the figures of a report to the loggers, as ``audit<suffix>/*``, and the console."""
    figures = {name.replace("audit/", f"audit{suffix}/", 1): value for name, value in report.metrics().items()}
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=trainer.global_step)
    log_clients(trainer, report)
    get_console().print(
        f"Label inference audit: label accuracy {report.label_accuracy:.3f}, exact {report.exact_match:.3f}, guess "
        f"{report.guess:.3f}; rank {report.rank} of {report.num_models}, condition {report.condition:.3g}, margin "
        f"{report.margin:.3g}",
        markup=False,
        highlight=False,
    )


def save(trainer: Trainer, name: str, text: str) -> None:
    """Write a report into the run's folder, unless the run leaves no files."""
    if writes_files(trainer):
        replace_text(run_folder(trainer) / f"label_inference_{name}.md", text)


def federation_sentence(trainer: Trainer, context: RoundContext) -> str:
    """Say in a sentence what a live attack was on."""
    config: Any = trainer.strategy.config  # type: ignore[attr-defined]  # checked on start
    secure, rule = config.secure_aggregation, type(config.rule).__name__
    behind = "no secure aggregation" if secure is None else f"secure aggregation ({secure.backend}, {secure.bits} bits)"
    bound = " and model binding" if secure is not None and secure.binding else ""
    return f"The federation's own rounds up to {context.round_idx}: {rule}, {behind}{bound}."
