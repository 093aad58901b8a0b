"""The protocol gives the ideal sum bit for bit, whoever falls silent when; thresholds; what the server keeps."""

import itertools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pl_fed.errors import FederatedConfigError, TooFewClientsError
from pl_fed.privacy import FixedPoint, IdealSum, PairwiseSum, Ring, choose_ring, decode_mean, encode, mean_error_bound
from pl_fed.privacy.pairwise import Step, TooFewSurvivorsError, default_threshold
from pl_fed.privacy.pairwise.errors import ModelMismatchError, OutOfOrderError
from pl_fed.privacy.pairwise.masks import self_mask_key
from pl_fed.privacy.pairwise.primitives import add_mask
from tests.helpers.secure import Parties, vectors

CASES = [{}, *({3: step} for step in Step)]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("dropouts", CASES, ids=lambda case: "none" if not case else case[3].name)
def test_sum_is_the_ideal_one_with_a_dropout_in_each_step(bits: int, dropouts: dict[int, Step]) -> None:
    """Until MASKED_INPUT a silent client's vector is missing; from CONSISTENCY_CHECK on it is in the sum."""
    ring, values = Ring(bits), vectors(5, bits=bits)
    ideal = IdealSum().sum(values, ring, dropouts=dropouts)
    pairwise = PairwiseSum().sum(values, ring, dropouts=dropouts)
    assert torch.equal(pairwise.total, ideal.total)
    gone = [who for who, step in dropouts.items() if step <= Step.MASKED_INPUT]
    assert pairwise.survivors == ideal.survivors == tuple(sorted(values.keys() - gone))
    parties = Parties.make(5, ring=ring)
    assert torch.equal(pairwise.total, parties.expected(pairwise.survivors))  # Python's integers


@settings(max_examples=25, deadline=None)
@given(num_clients=st.integers(2, 7), bits=st.sampled_from([32, 64]), data=st.data())
def test_both_sums_agree_on_every_outcome(num_clients: int, bits: int, data: st.DataObject) -> None:
    """Any cohort, threshold and dropouts: the same total and survivors, or both refuse."""
    values = vectors(num_clients, num_values=3, bits=bits, seed=data.draw(st.integers(0, 9)))
    threshold = data.draw(st.integers(num_clients // 2 + 1, num_clients))
    dropouts = data.draw(st.dictionaries(st.sampled_from(sorted(values)), st.sampled_from(Step), max_size=2))
    outcomes: list[Any] = []
    for summed in (IdealSum(threshold), PairwiseSum(threshold)):
        try:
            result = summed.sum(values, Ring(bits), dropouts=dropouts, context=b"x")
            outcomes.append((result.total.tolist(), result.survivors))
        except TooFewSurvivorsError:
            outcomes.append("too few")
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("step", Step)
def test_threshold_is_enough_and_one_less_is_not(step: Step) -> None:
    """5 clients and threshold 3: two may be silent in any step, three may not; then nothing is left to read."""
    parties = Parties.make(5, threshold=3)
    parties.run(silent=dict.fromkeys(parties.ids[:2], step))
    result = parties.server.result
    assert result is not None
    assert torch.equal(result.total, parties.expected(result.survivors))

    parties = Parties.make(5, threshold=3)
    with pytest.raises(
        TooFewSurvivorsError, match=f"at least 3 clients after {step.name} but got 2: nothing is reveal"
    ):
        parties.run(silent=dict.fromkeys(parties.ids[:3], step))
    assert parties.server.result is None and "_sum" not in vars(parties.server)
    with pytest.raises(OutOfOrderError, match="it is over"):
        parties.server.advance()


@pytest.mark.parametrize("summed", [IdealSum, PairwiseSum])
def test_thresholds_that_two_halves_could_reach_are_refused(summed: type[IdealSum | PairwiseSum]) -> None:
    for threshold in (0, 2, 5):
        with pytest.raises(
            FederatedConfigError, match=f"more than half of 4 clients .* got {threshold}: 3 is the usual"
        ):
            summed(threshold).sum(vectors(4), Ring(32))
    with pytest.raises(FederatedConfigError, match="at least 2 clients in a secure sum but got 1"):
        summed().sum(vectors(1), Ring(32))
    with pytest.raises(FederatedConfigError, match="vector of 8 values but got 7"):
        summed().sum({**vectors(3), 9**9: torch.zeros(7, dtype=torch.int64)}, Ring(32))
    with pytest.raises(FederatedConfigError, match="int64 vector"):
        summed().sum({0: torch.zeros(2), 1: torch.zeros(2)}, Ring(32))
    assert issubclass(TooFewSurvivorsError, TooFewClientsError)
    assert [default_threshold(n) for n in (2, 3, 4, 10, 100)] == [2, 3, 3, 7, 67]


def test_weighted_mean_end_to_end() -> None:
    """What a federation does: encode with weights, sum, decode; within the bound of the exact mean."""
    config, draw = FixedPoint(), torch.Generator().manual_seed(0)
    updates, weights = {k: torch.randn(50, generator=draw) for k in range(6)}, {k: 10 + 7 * k for k in range(6)}
    ring = choose_ring(config, 6, max(weights.values()))
    encoded = {k: encode(update, weights[k], config, draw).values for k, update in updates.items()}
    result = PairwiseSum().sum(encoded, ring, dropouts={2: Step.MASKED_INPUT})
    mean, weight = decode_mean(result.total, config, len(result.survivors), max(weights.values()))
    exact = sum(weights[k] * updates[k].double() for k in result.survivors) / weight
    assert weight == sum(weights[k] for k in result.survivors)
    assert float((mean - exact).abs().max()) <= mean_error_bound(config)


@pytest.mark.parametrize("odd", [0, 2, 4])
@pytest.mark.parametrize("bits", [32, 64])
def test_with_one_other_model_not_one_coordinate_is_right(bits: int, odd: int) -> None:
    """200 coordinates: in 32 bits one of them would be right by chance once in 20 million runs."""
    parties = Parties.make(5, ring=Ring(bits), num_values=200, contexts={Parties.make(5).ids[odd]: b"fishing"})
    parties.run()
    result = parties.server.result
    assert result is not None and len(result.survivors) == 5
    assert not bool((result.total == parties.expected(result.survivors)).any())


def test_server_that_knows_each_model_cannot_take_the_masks_off() -> None:
    """It may recompute the self mask of the fished client; the pairwise masks of it still stay in the sum."""
    parties = Parties.make(4, num_values=200, contexts={3: b"fishing"})
    parties.run(until=Step.MASKED_INPUT)
    running = parties.server._sum.copy()
    for who, client in parties.clients.items():  # the seeds that unmasking would give, with each client's own context
        add_mask(running, self_mask_key(client._seed, who, client.session), -1)
    total = parties.session.ring.values(running)
    assert not bool((total == parties.expected(parties.ids)).any())


@pytest.mark.parametrize("summed", [IdealSum(), PairwiseSum()])
def test_echo_names_the_round_and_the_clients(summed: IdealSum | PairwiseSum) -> None:
    values = vectors(4)
    odd = max(values)
    with pytest.raises(
        ModelMismatchError, match=f"in round 7 but client 3 and client {odd} got different ones:"
    ) as error:
        summed.sum(values, Ring(32), round_idx=7, context=b"model", client_contexts={odd: b"fishing"})
    assert (error.value.round_idx, error.value.client_ids, error.value.client_id) == (7, (odd,), 3)


def test_without_the_echo_the_sum_is_noise() -> None:
    values = vectors(4, num_values=100)
    result = PairwiseSum(echo=False).sum(values, Ring(32), context=b"m", client_contexts={3: b"fishing"})
    ideal = IdealSum().sum(values, Ring(32), context=b"m")
    assert not bool((result.total == ideal.total).any())


def test_vectors_are_asked_for_one_at_a_time() -> None:
    """A mapping that makes vectors on demand never has two of them alive."""
    given: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    class OnDemand(Mapping[int, torch.Tensor]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

        def __len__(self) -> int:
            return 4

        def __getitem__(self, who: int) -> torch.Tensor:
            alive.append(sum(vector() is not None for vector in given))
            vector = torch.full((4,), who)
            given.append(weakref.ref(vector))
            return vector

    result = PairwiseSum().sum(OnDemand(), Ring(32))
    assert result.total.tolist() == [6, 6, 6, 6]
    assert set(alive[2:]) == {0}  # the type checker of the tests looks at one, and the length is read from one


def secrets_of(parties: Parties) -> dict[str, bytes]:
    """Every secret of every client, while they still have them."""
    found = {}
    for who, client in parties.clients.items():
        found[f"{who} cipher key"] = client._cipher_key.private_bytes_raw()
        found[f"{who} mask key"] = client._mask_key.private_bytes_raw()
        found[f"{who} seed"] = client._seed
    return found


def bytes_inside(thing: Any, seen: set[int]) -> Iterator[bytes]:
    """Yield every byte string that can be reached from an object."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, (bytes, bytearray)):
        yield bytes(thing)
    elif isinstance(thing, dict):
        for part in itertools.chain(thing.keys(), thing.values()):
            yield from bytes_inside(part, seen)
    elif isinstance(thing, (list, tuple, set, frozenset)):
        for part in thing:
            yield from bytes_inside(part, seen)
    elif hasattr(thing, "__dict__"):
        yield from bytes_inside(vars(thing), seen)


def test_server_holds_no_secret_and_clients_forget_theirs() -> None:
    """After every step; the shares themselves only between the last message and the sum."""
    for step in Step:
        parties = Parties.make(4)
        parties.run(until=Step.ADVERTISE_KEYS)
        known = secrets_of(parties)
        parties = Parties.make(4)
        kept: dict[str, bytes] = {}

        def remember(parties: Parties, recipient: int | None, message: bytes, kept: dict[str, bytes] = kept) -> None:
            if parties.server.step == Step.SHARE_KEYS and not kept:
                kept.update(secrets_of(parties))

        parties.run(until=step, silent={parties.ids[0]: Step.MASKED_INPUT}, before=remember)
        material = b"|".join(bytes_inside(parties.server, set()))
        assert not [name for name, secret in {**known, **kept}.items() if secret in material]
    for who in parties.ids[1:]:
        left = b"|".join(bytes_inside(vars(parties.clients[who]), set()))
        assert not [name for name, secret in kept.items() if secret in left]
        assert not {"_seed", "_mask_key", "_cipher_key", "_own_shares"} & vars(parties.clients[who]).keys()


def test_only_one_share_of_each_client_leaves_a_client() -> None:
    """The shares that arrive: of the survivors' seeds, and of the dropped client's key; nothing of U1 without U2."""
    parties = Parties.make(5)
    late, silent = parties.ids[0], parties.ids[1]
    parties.run(until=Step.CONSISTENCY_CHECK, silent={late: Step.MASKED_INPUT, silent: Step.SHARE_KEYS})
    assert parties.server._sharing == (late, *parties.ids[2:])
    kinds = {who: parties.server._needed(who).name for who in parties.server._sharing}
    assert kinds == {late: "MASK_KEY", **dict.fromkeys(parties.ids[2:], "SELF_MASK")}


def test_a_vector_that_comes_too_late_is_refused() -> None:
    """Its sender's key is asked for: with the late vector as well, only the self mask would protect it."""
    parties = Parties.make(4)
    inbox = parties.run(until=Step.SHARE_KEYS)
    late, *others = parties.ids
    message = parties.clients[late].receive(inbox[late])
    for who in others:
        parties.server.receive(parties.clients[who].receive(inbox[who]))
    parties.server.advance()
    with pytest.raises(OutOfOrderError, match="Expected CONSISTENT but got MASKED"):
        parties.server.receive(message)


def test_masked_vectors_look_uniform_and_never_repeat() -> None:
    """The same vectors twice: no word in common, and half of the bits set, to four standard errors."""
    words = []
    for _ in range(2):
        parties = Parties.make(3, threshold=2, num_values=4000)
        parties.run(until=Step.MASKED_INPUT)
        words.append(parties.server._sum.copy())
    assert (words[0] == words[1]).mean() < 1e-3
    ones = float(torch.tensor([bin(int(word)).count("1") for word in words[0]]).double().mean())
    assert abs(ones - 16) < 4 * (32 * 0.25 / 4000) ** 0.5
