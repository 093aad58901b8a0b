"""Errors that a federation can raise; each message says what was expected, what came and what to change."""

import textwrap


class FederatedConfigError(ValueError):
    """The configuration of rounds, clients or rules cannot work."""


def first_line(error: BaseException) -> str:
    r"""Return what an error says, for one sentence: the first line, or the error's kind if it says nothing.

    Example:
        >>> first_line(EOFError()), first_line(OSError("no space\nat all"))
        ('EOFError', 'no space')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shortened(error: BaseException) -> str:
    r"""Return what an error says as a part of one sentence; libraries write paragraphs.

    Example:
        >>> shortened(ValueError("Wrong. \n Very wrong.")), shortened(EOFError())
        ('Wrong. Very wrong', 'EOFError')
    """
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...").rstrip(".")


class ClientFailureError(RuntimeError):
    """One client's contribution to a round cannot be used; the round goes on without it.

    Callbacks may raise it in ``on_client_start``, ``on_client_end`` or ``on_upload``.

    Args:
        client_id: The client that failed.
        reason: A short word for the log, for example ``"not_finite"``.
        detail: A sentence for people.
    """

    def __init__(self, client_id: int, reason: str, detail: str = "") -> None:
        super().__init__(f"client {client_id} is left out ({reason}){': ' + detail if detail else ''}")
        self.client_id = client_id
        self.reason = reason


class TooFewClientsError(RuntimeError):
    """Fewer clients survived a round than the federation accepts."""


class FishedModelError(RuntimeError):
    """A client was sent a model that looks crafted to reveal its labels, and the run is to stop."""


class CheckpointMismatchError(FederatedConfigError):
    """A checkpoint belongs to another rule, population or adapter than the run that loads it."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or written."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at a path."""
