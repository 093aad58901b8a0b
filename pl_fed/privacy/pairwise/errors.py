"""What can go wrong in a secure sum, one class a kind; no message ever holds key, share or mask material."""

from pl_fed.errors import TooFewClientsError


class ProtocolError(RuntimeError):
    """A message or a party broke the protocol of the secure sum; nothing of any input was revealed by it."""


class MalformedMessageError(ProtocolError):
    """A message is not of the expected format, version or length."""


class StrangerError(ProtocolError):
    """A message names a sender that does not take part."""


class ForgedMessageError(ProtocolError):
    """A signature or an authentication tag does not fit what was received."""


class WrongSessionError(ProtocolError):
    """A message was made for another session, or for other settings of it."""


class WrongRecipientError(ProtocolError):
    """A message was made for somebody else."""


class OutOfOrderError(ProtocolError):
    """A message does not belong to the step that is going on, or the party has finished."""


class ReplayedMessageError(ProtocolError):
    """A party has already sent its message of this step."""


class KeyAgreementError(ProtocolError):
    """A public key cannot be used: it is of low order, not the announced one, or used twice."""


class MembershipError(ProtocolError):
    """A list of clients is not what it must be: not a subset of the last one, or without the one who reads it."""


class InconsistentSurvivorsError(ProtocolError):
    """Clients were told different lists of survivors."""


class UnexpectedRequestError(ProtocolError):
    """The server asks for shares that it must not get."""


class BothSharesError(UnexpectedRequestError):
    """The server asks for the shares of both secrets of one client, which would reveal its vector."""


class CorruptShareError(ProtocolError):
    """A secret that was put together from shares is not the one that its owner committed to."""


class TooFewSurvivorsError(ProtocolError, TooFewClientsError):
    """Fewer clients than the threshold are left; the sum stays secret."""


class ModelMismatchError(ProtocolError):
    """Clients of one round received different models.

    Args:
        round_idx: The round.
        client_ids: The clients whose model differs from that of the client that noticed.
        client_id: The client that noticed.
    """

    def __init__(self, round_idx: int, client_ids: tuple[int, ...], client_id: int) -> None:
        others = f"{'clients' if len(client_ids) > 1 else 'client'} {', '.join(map(str, client_ids))}"
        super().__init__(
            f"Expected one model for everybody in round {round_idx} but client {client_id} and {others} got different "
            "ones: do not send updates of this round, and ask who runs the server why."
        )
        self.round_idx = round_idx
        self.client_ids = client_ids
        self.client_id = client_id
