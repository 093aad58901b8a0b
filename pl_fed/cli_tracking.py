"""The command line's W&B logger: W&B that cannot be reached neither ends a run nor holds it up.

Left alone, W&B waits 90 s for a server that does not answer and then raises; asks the server before every table, and
raises in the middle of the run when it has gone; and at the end waits for it without a limit.
"""

import logging
import os
from pathlib import Path
from typing import Any

import httpx
import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
LIMITS_SECONDS = {"init_timeout": 30.0, "finish_timeout": 60.0}  # WANDB_INIT_TIMEOUT, WANDB_FINISH_TIMEOUT win
VIEWER = "query Viewer { viewer { id } }"


class FallbackWandbLogger(WandbLogger):
    """Tracks online, and offline where that is impossible.

    Whether there is an API key and the server answers is tried before the W&B run begins. What keeps W&B from going
    online is told in one sentence, and the run goes on offline: `wandb sync` uploads it later. Once the server does not
    answer, the run's tables are left out, since W&B would wait at each; the rest reaches it when it answers again.

    Args:
        options: Those of `WandbLogger`.
    """

    def __init__(self, **options: Any) -> None:
        limits = {name: value for name, value in LIMITS_SECONDS.items() if f"WANDB_{name.upper()}" not in os.environ}
        super().__init__(settings={**limits, "finish_timeout_raises": True}, **options)
        self._wandb_init.pop("anonymous")  # Lightning's None is told to be deprecated
        self._has_tables = True

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; the first use starts it."""
        attached = getattr(self, "_attach_id", None) is not None  # to the run of the process that spawned this one
        if self._experiment is None and wandb.run is None and not attached and self._may_be_online:
            try:
                reason = _no_key() or _no_answer()
                if reason is None:
                    return super().experiment
            except wandb.Error as error:
                reason = f"the server at {_settings().base_url} refused the run ({_first_line(error)})"
            log.warning("W&B goes on offline: %s. `wandb sync` uploads the run later.", reason)
            wandb.teardown()  # else its telemetry goes on waiting for the server
            self._offline = True
        return super().experiment

    @property
    def _may_be_online(self) -> bool:
        return not self._offline and _settings().mode in ("online", "run", "shared")

    @rank_zero_only
    def log_table(self, *args: Any, **kwargs: Any) -> None:
        """Log a table, unless the server has gone.

        Args:
            args: See `WandbLogger`.
            kwargs: See `WandbLogger`.
        """
        if not self._has_tables:
            return
        reason = _no_answer() if self._may_be_online else None
        if reason is None:
            try:
                return super().log_table(*args, **kwargs)
            except wandb.Error as error:
                reason = _first_line(error)
        self._has_tables = False
        log.warning("W&B gets no more tables of this run: %s. Its folder has the clients' as CSV files.", reason)


def finish_tracking() -> None:
    """End the W&B run of this process, if there is one, and tell when not everything was uploaded in time."""
    if (run := wandb.run) is None:
        return
    folder = Path(run.dir).parent
    try:
        run.finish()
    except TimeoutError:
        log.warning("W&B did not take the whole run in time; `wandb sync %s` uploads it.", folder)


def _first_line(error: wandb.Error) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _settings() -> wandb.Settings:
    return wandb.setup().settings


def _no_key() -> str | None:
    """Say that there is no API key, in any place where W&B looks; it would ask for one and wait."""
    if wandb.login(prompt=False, verify=False):
        return None
    return "no API key is set (WANDB_API_KEY, or `wandb login` before the run)"


def _no_answer() -> str | None:
    """Say why the server is of no use now, if it is."""
    settings = _settings()
    url, key = settings.base_url, os.environ.get("WANDB_API_KEY")
    try:
        status = httpx.post(
            f"{url}/graphql",
            json={"query": VIEWER},
            auth=("api", key) if key else None,
            timeout=ANSWER_SECONDS,
            verify=not settings.insecure_disable_ssl,
            proxy=settings.https_proxy if url.startswith("https") else settings.http_proxy,
        ).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"the server at {url} does not answer ({error})"
    if status in (401, 403):
        return f"the server at {url} refused the API key"
    return f"the server at {url} answered with status {status}" if status >= 500 else None
