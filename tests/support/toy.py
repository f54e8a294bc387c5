"""Distributions over completions that are small enough to enumerate, and the exact laws that follow.

A `Toy` is a next-token law with the end rules of lm_power/README.md. Nothing here uses `lm_power.target` or the
engine: log q, draws and end rules are written a second time, in NumPy, so that tests compare two computations.
The laws themselves come from `lm_power.theory`, which no sampler uses and which knows log p of completions alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.stats

from lm_power.chains import Algorithm, Info, Move, OneLane, Path, Proposal, Result, Stream
from lm_power.chains.cuts import Cuts
from lm_power.chains.metropolis import EMPTY_STATE, BlockwiseMetropolis, State
from lm_power.decoding import FinishedBy, FloatArray, Measures, Request, Segment
from lm_power.theory import SequenceDistribution

Tokens = tuple[int, ...]
ANY_STREAM = Stream(b"")  # where a request's horizon is wanted, not its random numbers


@dataclasses.dataclass(frozen=True)
class Toy:
    """A next-token law and the rules by which completions end.

    Attributes:
        next_log_p: prefix → [vocabulary] float64 log p(· | prefix), nats.
        eos_ids: tokens that end a completion.
        stop: tokens that together end a completion, as a stop string of several tokens does; may be empty.
        reach: q is confined to so many of the likeliest tokens; None: to all.
        student: whose next-token law q is tempered from; None: this one's own.
    """

    next_log_p: Callable[[Tokens], FloatArray]
    eos_ids: frozenset[int]
    stop: Tokens = ()
    reach: int | None = None
    student: Toy | None = None
    _tables: dict[tuple[Tokens, float], tuple[FloatArray, FloatArray]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def log_probs(self, prefix: Tokens, beta: float) -> tuple[FloatArray, FloatArray]:
        """Two [vocabulary] arrays, nats: log p(· | prefix) and log q(· | prefix), q ∝ p^beta."""
        key = prefix, beta
        if key not in self._tables:
            log_p = self.next_log_p(prefix)
            tempered = beta * (log_p if self.student is None else self.student.next_log_p(prefix))
            if self.reach is not None:
                tempered[np.argsort(-log_p)[self.reach :]] = -np.inf
            self._tables[key] = log_p, tempered - np.logaddexp.reduce(tempered)
        return self._tables[key]

    def ended(self, tokens: Tokens, horizon: int) -> FinishedBy | None:
        """Why `tokens` is terminal at `horizon`, or None."""
        if tokens and tokens[-1] in self.eos_ids:
            return FinishedBy.EOS
        if self.stop and tokens[-len(self.stop) :] == self.stop:
            return FinishedBy.STOP
        return FinishedBy.HORIZON if len(tokens) >= horizon else None

    def completions(self, horizon: int, prefix: Tokens = ()) -> Iterator[Tokens]:
        """Every sequence that continues the non-terminal `prefix` and is terminal at `horizon`."""
        for token in range(len(self.log_probs(prefix, 1.0)[0])):
            tokens = (*prefix, token)
            if self.ended(tokens, horizon):
                yield tokens
            else:
                yield from self.completions(horizon, tokens)

    def log_z(self, prefix: Tokens, exponent: float) -> float:
        """`log Σ_v p(v | prefix)^exponent`, nats, over what q reaches."""
        log_p = np.sort(self.log_probs(prefix, 1.0)[0])[::-1][: self.reach]
        return float(np.logaddexp.reduce(exponent * log_p))

    def segment(
        self, tokens: Tokens, keep: int, beta: float, horizon: int, exponents: tuple[float, ...] = ()
    ) -> Segment:
        """What an engine hands back when it has drawn `tokens[keep:]` after `tokens[:keep]`."""
        prefixes = [tokens[:t] for t in range(keep, len(tokens))]
        laws = [self.log_probs(prefix, 1.0)[0] for prefix in prefixes]
        pairs = [self.log_probs(tokens[:t], beta) for t in range(keep, len(tokens))]
        chosen = list(zip(pairs, tokens[keep:], strict=True))
        return Segment(
            np.array(tokens[keep:]),
            np.array([log_p[token] for (log_p, _), token in chosen]),
            np.array([log_q[token] for (_, log_q), token in chosen]),
            self.ended(tokens, horizon),
            log_z=np.array([[self.log_z(prefix, e) for e in exponents] for prefix in prefixes]),
            entropy=np.array([-(np.exp(law) * law).sum() for law in laws]),
        )

    def state(self, tokens: Tokens, beta: float, horizon: int) -> State:
        """A chain's state that holds `tokens`, in stage 1 with no step done yet."""
        return dataclasses.replace(EMPTY_STATE.spliced(0, self.segment(tokens, 0, beta, horizon)), step=0)

    def draw_law(self, prefix: Tokens, beta: float, excluded: int | None, explore: bool = False) -> FloatArray:
        """[vocabulary] probabilities of the next token under q, or p, without `excluded` if that is a token."""
        q = np.exp(self.log_probs(prefix, beta)[0 if explore else 1])
        if excluded is not None:
            q[excluded] = 0
        return q / q.sum()

    def decode(self, kept: Tokens, request: Request, exponents: tuple[float, ...] = ()) -> Segment:
        """An engine in miniature: draw from q as the request says until terminal, or below its bound."""
        tokens, excluded, bound, weight = kept, request.excluded_first_token, request.reject_below, 0.0
        for uniform in request.uniforms:
            law = self.draw_law(tokens, request.beta, excluded, request.explore)
            token = int(np.searchsorted(np.cumsum(law)[:-1], uniform, side="right"))
            excluded = None
            if bound is not None:
                log_p, log_q = (table[token] for table in self.log_probs(tokens, request.beta))
                gain = bound.log_p * log_p + (bound.log_q * log_q if bound.log_q else 0.0)
                weight += min(0, gain)
            tokens = (*tokens, token)
            if self.ended(tokens, request.horizon):
                break
            if bound is not None and weight + bound.log_length * math.log(len(tokens) + 1) < bound.value:
                break
        return self.segment(tokens, request.keep, request.beta, request.horizon, exponents)


def random_toy(
    vocabulary: int, eos_ids: tuple[int, ...], stop: Tokens = (), seed: int = 0, eos_bias: float = 0.0
) -> Toy:
    """A toy whose logits are random numbers that depend on the whole prefix; `eos_bias` is added to EOS."""

    def next_log_p(prefix: Tokens) -> FloatArray:
        # The length goes in because NumPy's seeds (1,) and (1, 0) are the same.
        logits = np.random.default_rng([seed, len(prefix), *prefix]).normal(size=vocabulary)
        logits[list(eos_ids)] += eos_bias
        return logits - np.logaddexp.reduce(logits)

    return Toy(next_log_p, frozenset(eos_ids), stop)


def own_law(toy: Toy, completions: list[Tokens]) -> SequenceDistribution:
    """The model's own law p over `completions`, all that there are at some horizon: else it is refused."""
    log_p = [math.fsum(toy.log_probs(x[:t], 1.0)[0][x[t]] for t in range(len(x))) for x in completions]
    return SequenceDistribution(tuple(completions), np.array(log_p))


def ancestral_law(toy: Toy, completions: list[Tokens], beta: float) -> FloatArray:
    """[completions] probabilities of token-by-token draws from q, confined to its reach, the student's if there is one.

    With beta = 1 and neither of them, the model's own law p.
    """
    log_q = [math.fsum(toy.log_probs(x[:t], beta)[1][x[t]] for t in range(len(x))) for x in completions]
    return np.exp(log_q)


def power_law(toy: Toy, completions: list[Tokens], alpha: float) -> FloatArray:
    """[completions] probabilities of the target π ∝ p^alpha."""
    return np.exp(own_law(toy, completions).power(alpha).log_p)


def transition_matrix(toy: Toy, chain: BlockwiseMetropolis) -> tuple[list[Tokens], FloatArray]:
    """One Metropolis-Hastings step in stage 1 as a matrix, by the chain's own code.

    For every completion x and cut i, every proposal y enters with its probability and is accepted with
    probability `min(1, exp(log_ratio))`; that `propose` and `advance` do draw the cut uniformly, keep tokens
    with the probabilities of coupled resume and accept with that probability has tests of its own.

    Returns:
        The states: all completions terminal at the stage's horizon, then whatever else a (broken) chain
        reaches from them; and the [states, states] matrix, whose row x is the law of the next state.
    """
    states = list(toy.completions(chain.horizon(1)))
    index = {tokens: place for place, tokens in enumerate(states)}
    moves: dict[tuple[int, int], float] = {}
    for x in states:  # grows where a broken chain leaves the completions
        for y, probability in _moves(toy, chain, x):
            if y not in index:
                index[y] = len(states)
                states.append(y)
            at = index[x], index[y]
            moves[at] = moves.get(at, 0.0) + probability
    matrix = np.zeros((len(states), len(states)))
    for at, probability in moves.items():
        matrix[at] = probability
    return states, matrix


def proposals(toy: Toy, chain: BlockwiseMetropolis, x: Tokens, cut: int) -> Iterator[tuple[Proposal, Tokens, float]]:
    """Every way to propose from x at a cut: (move with u = 1, proposal y, probability).

    Which tokens of x are kept, and which first token is excluded, is what the chain itself asks for when its
    coins fall so; the probabilities of the coins are those of coupled resume.
    """
    ended_at = len(x) if toy.ended(x, chain.horizon(1)) is None else chain.horizon(1)
    state = toy.state(x, chain.beta, ended_at)
    explore = chain.explore > 0  # `Scripted` makes every step one that explores, where there are any
    chain = dataclasses.replace(chain, cuts=At(chain.cuts, cut))
    move = chain.next_move(state, Scripted(cut, np.zeros(len(x) - cut)))
    if move.hopeless:
        yield move, x, 1.0
        return
    coupled = chain.coupled_resume and not explore
    kept = np.exp(state.log_q[cut:])
    for refused in range(len(kept)) if coupled else [None]:
        coins = None if refused is None else np.arange(len(kept)) == refused  # 1 is never below q, 0 always
        move = chain.next_move(state, Scripted(cut, coins))
        of_move = 1.0 if refused is None else float(kept[:refused].prod() * (1 - kept[refused]))
        request = move.request
        assert request is not None
        law = toy.draw_law(x[: request.keep], chain.beta, request.excluded_first_token, explore)
        for y in toy.completions(request.horizon, x[: request.keep]):
            segment = toy.segment(y, request.keep, chain.beta, request.horizon)
            log_q = segment.log_p if explore else segment.log_q
            yield move, y, of_move * law[y[request.keep]] * math.exp(math.fsum(log_q[1:]))
    if coupled:
        yield chain.next_move(state, Scripted(cut, np.zeros(len(kept)))), x, float(kept.prod())


def _moves(toy: Toy, chain: BlockwiseMetropolis, x: Tokens) -> Iterator[tuple[Tokens, float]]:
    """(next state, probability) pairs of one step from x; a next state can occur several times."""
    ended_at = len(x) if toy.ended(x, chain.horizon(1)) is None else chain.horizon(1)
    state = toy.state(x, chain.beta, ended_at)
    for cut in range(len(x)):
        for move, y, probability in proposals(toy, chain, x, cut):
            request = move.request
            segment = None if request is None else toy.segment(y, request.keep, chain.beta, request.horizon)
            _, info = chain.settle(state, move, segment)
            assert info.log_ratio is not None
            proposed = probability * math.exp(chain.cuts.log_probability(state, cut))
            accepted = math.exp(min(0.0, info.log_ratio))
            yield y, proposed * accepted
            yield x, proposed * (1 - accepted)


@dataclasses.dataclass(frozen=True)
class At:
    """Cuts that fall where a test wants them, with the probabilities that they have."""

    inner: Cuts
    cut: int

    @property
    def measures(self) -> Measures:
        return self.inner.measures

    def draw(self, path: Path, generator: object) -> int:
        return self.cut

    def log_probability(self, path: Path, cut: int) -> float:
        return self.inner.log_probability(path, cut)

    def most(self, path: Path, keep: int, cut: int) -> tuple[float, float]:
        return self.inner.most(path, keep, cut)


class Scripted:
    """Stands in for a `Stream`: a step gets this cut, u = 1 and these coins, and uniforms that are all 0."""

    def __init__(self, cut: int, coins: FloatArray | None) -> None:
        self.cut, self.coins = cut, coins

    def at(self, stage: int, step: int, lane: int = 0) -> Scripted:
        return self

    def integers(self, high: int) -> int:
        return self.cut

    def random(self, size: int | None = None) -> float | FloatArray:
        if size is None:
            return 0.0
        coins, self.coins = self.coins, None
        return np.zeros(size) if coins is None else coins


def law_after(toy: Toy, chain: BlockwiseMetropolis, steps: int) -> tuple[list[Tokens], FloatArray]:
    """The completions, and the exact law `init_q · P^steps` of a one-block chain after `steps` steps."""
    states, matrix = transition_matrix(toy, chain)
    return states, ancestral_law(toy, states, chain.beta) @ np.linalg.matrix_power(matrix, steps)


def law_of_schedule(toy: Toy, chain: BlockwiseMetropolis) -> tuple[list[Tokens], FloatArray]:
    """The completions, and the exact law of a chain's result after all its stages and final steps."""
    done: dict[Tokens, float] = {}
    alive: dict[Tokens, float] = {(): 1.0}
    for stage in range(1, chain.stages + 1):
        horizon = chain.horizon(stage)
        states, matrix = transition_matrix(toy, dataclasses.replace(chain, block_size=horizon, max_new_tokens=horizon))
        place = {x: at for at, x in enumerate(states)}
        law = np.zeros(len(states))
        for x, probability in alive.items():
            for y in toy.completions(horizon, x):  # the extension
                law[place[y]] += probability * math.exp(toy.segment(y, len(x), chain.beta, horizon).log_q.sum())
        law @= np.linalg.matrix_power(matrix, chain.mcmc_steps)
        alive = {}
        for x, probability in zip(states, law, strict=True):
            over = toy.ended(x, horizon) is not FinishedBy.HORIZON or horizon == chain.max_new_tokens
            kept = done if over else alive
            kept[x] = kept.get(x, 0.0) + float(probability)
    # `states` and `matrix` are those of the full length now.
    law = np.array([done.get(x, 0.0) for x in states])
    return states, law @ np.linalg.matrix_power(matrix, chain.final_steps)


def total_variation(a: FloatArray, b: FloatArray) -> float:
    """`½ Σ |a − b|`."""
    return 0.5 * float(np.abs(a - b).sum())


def agreement(counts: FloatArray, law: FloatArray) -> float:
    """p-value of a chi-square test that `counts` were drawn from `law`; rare cells are pooled into one.

    A count where the law has no mass at all gives 0.
    """
    if counts[law == 0].any():
        return 0.0
    expected = counts.sum() * law
    rare = expected < 5
    pooled = [np.append(values[~rare], values[rare].sum()) for values in (counts, expected)]
    observed, expected = (values[: len(values) - (pooled[1][-1] < 5)] for values in pooled)
    if len(observed) < len(pooled[0]):  # the pool itself is too small: it joins the smallest cell
        smallest = expected.argmin()
        observed[smallest] += pooled[0][-1]
        expected[smallest] += pooled[1][-1]
    if len(observed) < 2:
        raise ValueError("one cell holds everything: nothing to test")
    return float(scipy.stats.chisquare(observed, expected).pvalue)


def trace(toy: Toy, chain: OneLane, stream: Stream) -> Iterator[tuple[Any, Any, Info, Any]]:
    """Run a chain to its end: (state before, move, what happened, state after) of every step."""
    state = chain.start()
    while chain.result(state) is None:
        move = chain.next_move(state, stream)
        after, info = chain.settle(state, move, decoded(toy, state, move))
        yield state, move, info, after
        state = after


def drawn(toy: Toy, algorithm: Algorithm[Any], stream: Stream) -> Result:
    """Run an algorithm of any number of lanes to its end, each round decoded by the toy."""
    state, exponents = algorithm.start(), algorithm.measures.exponents
    while (result := algorithm.result(state)) is None:
        moves = algorithm.propose(state, stream)
        held = [tuple(tokens.tolist()) for tokens in algorithm.held(state)]
        segments = [
            None if (asked := move.request) is None else toy.decode(held[move.lane][: asked.keep], asked, exponents)
            for move in moves
        ]
        state, _ = algorithm.advance(state, moves, segments, stream)
    return result


def decoded(toy: Toy, state: State, move: Move) -> Segment | None:
    """What an engine hands back for the move's request, if it has one."""
    request = move.request
    return None if request is None else toy.decode(tuple(state.tokens[: request.keep].tolist()), request)


class WithoutCutRatio(BlockwiseMetropolis):
    """Broken as the released code is: log n − log n' is left out of the ratio."""

    def log_ratio(self, current: State, segment: Segment, keep: int, *rest: Any) -> float:
        cuts = math.log(len(current)) - math.log(keep + len(segment.tokens))
        return super().log_ratio(current, segment, keep, *rest) - cuts


class WithTruncatedWeights(BlockwiseMetropolis):
    """Broken as the released code is: the current suffix's weights are cut to the proposal's length."""

    def log_ratio(self, current: State, segment: Segment, keep: int, *rest: Any) -> float:
        unseen = slice(keep + len(segment.tokens), None)
        extra = self.log_weight(current.log_p[unseen], current.log_q[unseen])
        return super().log_ratio(current, segment, keep, *rest) + extra


class WithCappedProposals(BlockwiseMetropolis):
    """Broken as the released code is: a proposal is never longer than the current completion."""

    def next_move(self, state: State, stream: Stream) -> Move:
        move = super().next_move(state, stream)
        if state.step is None or move.request is None:
            return move
        room = len(state) - move.request.keep
        capped = dataclasses.replace(move.request, horizon=len(state), uniforms=move.request.uniforms[:room])
        return dataclasses.replace(move, request=capped)


class WithoutExclusion(BlockwiseMetropolis):
    """Broken as a careless coupled resume is: after a refusal the refused token can be drawn again."""

    def next_move(self, state: State, stream: Stream) -> Move:
        move = super().next_move(state, stream)
        if move.request is None:
            return move
        return dataclasses.replace(move, request=dataclasses.replace(move.request, excluded_first_token=None))
