"""Another model proposes, the target stays the base's: through the whole stack, and on lm-eval's command line."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from engine.test_out_of_memory import Failures, failing
from foreign_adapters import make_adapter
from harness.tiny_lm import save_model
from models import make_model, student_of
from test_law import EOS_IDS, FALSE_ALARM, FLAT_SEED, LONGEST, PROMPT, ROWS, enumerable, p_value, tiny_model
from toy import ancestral_law, law_after, power_law, total_variation

import lm_power.host
from lm_power import OptionError, PowerSampler
from lm_power.chains import METHODS, BlockwiseMetropolis, make_algorithm
from lm_power.config import SamplerConfig

ALPHA, STRENGTH = 1.5, 0.5
LAWS = {
    "power": {"method": "power", "mcmc_steps": 20, "block_size": LONGEST},
    "power, not coupled": {"method": "power", "mcmc_steps": 20, "block_size": LONGEST, "coupled_resume": False},
    "smc": {"method": "smc", "particles": 3, "resample_every": 2, "sweeps": 12, "ess_threshold": 0.9},
}


def test_the_chain_has_converged_and_a_clipped_one_has_not() -> None:
    """Guards the test below against a chain that is not yet at p^alpha, and against weights that are cut off at 0.

    Exact: by how much the bias raises the chi-square statistic of 20,000 chains, whose standard deviation is about 10.
    """
    base = tiny_model(5, FLAT_SEED)
    toy, student = (enumerable(model, EOS_IDS) for model in (base, student_of(base, STRENGTH)))
    both = dataclasses.replace(toy, student=student, _tables={})
    config = SamplerConfig(max_new_tokens=LONGEST, alpha=ALPHA, **LAWS["power"]).with_foreign_proposals()
    chain = make_algorithm(config, foreign=True)

    def after(chain: BlockwiseMetropolis) -> tuple[np.ndarray, np.ndarray]:
        """The target, and the law after the steps from what the student draws first."""
        completions, law = law_after(both, chain, config.mcmc_steps)
        return power_law(toy, completions, ALPHA), law

    target, law = after(chain)
    assert 20_000 * ((law - target) ** 2 / target).sum() < 5
    target, clipped = after(dataclasses.replace(chain, foreign=False, early_rejection=False))
    assert total_variation(clipped, target) > 0.05


@pytest.mark.parametrize("chains", [250, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", LAWS.values(), ids=LAWS.keys())
def test_the_law_through_the_whole_stack(options, chains) -> None:
    """Guards draws, log p and log q of two models as they run: chi-square against p^alpha of the base.

    False-alarm probability 1e-4; the same completions are not the student's own.
    """
    base = tiny_model(5, FLAT_SEED)
    student = student_of(base, STRENGTH)
    toy = enumerable(base, EOS_IDS)
    completions = list(toy.completions(LONGEST))
    sampler = PowerSampler(base, None, max_rows=ROWS, eos_token_ids=EOS_IDS, proposer=student)
    (drawn,) = sampler.generate([PROMPT], n=chains, max_new_tokens=LONGEST, alpha=ALPHA, **options)
    assert p_value(drawn, completions, power_law(toy, completions, ALPHA)) > FALSE_ALARM
    assert p_value(drawn, completions, ancestral_law(enumerable(student, EOS_IDS), completions, 1.0)) < 1e-9
    for completion in drawn[:50]:
        assert completion.log_probs[0] == pytest.approx(toy.log_probs((), 1.0)[0][completion.token_ids[0]], abs=1e-10)


def outcome(sampler: PowerSampler, **options):
    """Tokens, ends and steps of three completions of two prompts."""
    drawn = sampler.generate([[5, 6, 7], [9, 8]], n=3, max_new_tokens=12, seed=2, alpha=2.0, **options)
    return [(c.token_ids, c.finish_reason, c.steps) for cs in drawn for c in cs]


@pytest.mark.parametrize("options", [{"mcmc_steps": 4, "block_size": 5}, {"method": "smc", "particles": 3}])
def test_a_student_equal_to_the_base_changes_no_completion(options) -> None:
    """Guards everything between: with q of the same law, the same completions, token for token, in float64."""
    base = make_model("qwen2", dtype=torch.float64)
    plain = PowerSampler(base, None, max_rows=4, eos_token_ids=range(12))
    paired = PowerSampler(base, None, max_rows=4, eos_token_ids=range(12), proposer=student_of(base, 0.0))
    assert outcome(paired, **options, proposal_temperature=0.5) == outcome(plain, **options)
    assert outcome(paired, **options) != outcome(plain, **options), "by default a student proposes at temperature 1"


def test_the_same_completions_when_memory_runs_out(monkeypatch) -> None:
    """Guards a row that is loaded again with what it held: both models have to read it."""
    base = make_model("qwen2", dtype=torch.float64)
    options = {"mcmc_steps": 4, "block_size": 5}
    sampler = PowerSampler(base, None, max_rows=6, eos_token_ids=range(6), proposer=student_of(base))
    expected = outcome(sampler, **options)
    monkeypatch.setattr(lm_power.host, "Engine", failing(Failures({"step": {9, 30}, "submit": {9}})))
    assert outcome(sampler, **options) == expected


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """The tiny model, two adapters of it, and one of a model of other shape."""
    root = tmp_path_factory.mktemp("models")
    base, wide = save_model(root / "base"), save_model(root / "wide", hidden_size=64)
    for name, model, target in (("student", base, "q_proj"), ("other", base, "v_proj"), ("misfit", wide, "q_proj")):
        make_adapter(model, root / name, target_modules=[target])
    return {name: str(root / name) for name in ("base", "student", "other", "misfit")}


OPTIONS = {"mcmc_steps": 3, "block_size": 6, "alpha": 2.0}


@pytest.mark.parametrize("peft", [None, "other"])
def test_from_pretrained_puts_each_adapter_on_a_model_of_its_own(folders, peft) -> None:
    """Guards: the proposal's adapter in the target, the target's in the proposal, or the base's weights twice."""
    sampler = PowerSampler.from_pretrained(
        folders["base"], dtype="float64", peft=peft and folders[peft], proposal_peft=folders["student"]
    )
    alone = {
        name: PowerSampler.from_pretrained(
            folders["base"], dtype="float64", peft=name and folders[name]
        ).host.backend.model
        for name in (peft, "student")
    }
    x = torch.tensor([[1, 5, 9, 4]])
    with torch.inference_mode():
        for model, name in zip(sampler.host.backend.models, (peft, "student"), strict=True):
            torch.testing.assert_close(model.model(x).logits, alone[name](x).logits, atol=1e-12, rtol=0)
    target, proposer = ({p.data_ptr() for p in model.model.parameters()} for model in sampler.host.backend.models)
    assert len(target & proposer) >= 20, "the base's weights are shared"
    (drawn,) = sampler.generate(["abc"], n=2, max_new_tokens=8, **OPTIONS)
    for completion in drawn:
        ids = torch.tensor([[*sampler.encode("abc"), *completion.token_ids]])
        with torch.inference_mode():
            log_p = alone[peft](ids).logits[0].log_softmax(-1)
        at = torch.arange(len(completion.token_ids)) - len(completion.token_ids) - 1
        np.testing.assert_allclose(completion.log_probs, log_p[at, torch.tensor(completion.token_ids)], atol=1e-8)


def power_hf(folders, **options):
    """The lm-eval model."""
    from lm_power.harness.power_hf import PowerHF

    return PowerHF(folders["base"], device="cpu", dtype="float64", batch_size=3, **{**OPTIONS, **options})


def generated(lm, prompts=("ab", "c", "hello ", "x?")):
    """Completions of at most 10 tokens, as lm-eval asks for them."""
    from lm_eval.api.instance import Instance

    arguments = {"until": [], "max_gen_toks": 10}
    return lm.generate_until(
        [Instance("generate_until", {}, (prompt, arguments), 0) for prompt in prompts], disable_tqdm=True
    )


def test_a_killed_run_goes_on_and_an_adapter_is_part_of_the_key(folders, tmp_path) -> None:
    """Guards resume: what is stored comes back, the rest is drawn to the same tokens; another proposal is another run.

    The first run is cut off within a line.
    """
    whole = generated(power_hf(folders, proposal_peft=folders["student"]))
    store = tmp_path / "store"
    generated(power_hf(folders, proposal_peft=folders["student"], completions=str(store)))
    (file,) = store.glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    file.write_bytes(b"".join(lines[:2]) + lines[2][:50])
    lm = power_hf(folders, proposal_peft=folders["student"], completions=str(store))
    assert [c.token_ids for c in generated(lm)] == [c.token_ids for c in whole]
    assert lm.sampler.counters.decoded > 0
    records = [json.loads(line) for path in store.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(records) == 4 and {len(r["config"]["proposal_weights"]) for r in records} == {16}
    assert {r["config"]["proposal_temperature"] for r in records} == {1.0}
    for options in ({"proposal_peft": folders["other"]}, {}):
        another = power_hf(folders, completions=str(store), **options)
        generated(another)
        assert another.sampler.counters.decoded > 0, options
    assert lm.get_model_info()["power_sampler"]["proposal_temperature"] == 1.0


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.foreign])
def test_methods_without_foreign_proposals_are_refused(folders, method) -> None:
    """Guards: a student's tokens sold as those of the base; before the model is loaded, and in --gen_kwargs."""
    with pytest.raises(OptionError, match=f"method={method}: .*use method=power or smc, or leave out proposal_peft"):
        power_hf(
            {"base": "no/such/model"}, method=method, proposal_peft="student", alpha=4.0, mcmc_steps=10, block_size=192
        )
    base = make_model("qwen2")
    sampler = PowerSampler(base, None, eos_token_ids=[0], proposer=student_of(base))
    with pytest.raises(OptionError, match=f"method={method}"):
        sampler.generate([[5]], method=method, max_new_tokens=4)


WRONG = [
    ({"proposal_peft": "misfit"}, "proposal_peft=.*misfit: cannot be loaded on .*size mismatch"),
    ({"proposal_peft": "base"}, "proposal_peft=.*base: cannot be loaded"),
    ({"proposal_peft": "student", "torch_compile": True}, "torch_compile=True with proposal_peft"),
    ({"proposal_peft": "student", "randomize_weights": True}, "randomize_weights=True with proposal_peft"),
    ({"proposal_peft": "student", "proposal_temperature": 0.2}, r"proposal_temperature=0.2: must be in \[1/alpha, 1\]"),
    ({"proposal_peft": "student", "explore": 0.1}, "explore=0.1"),
    ({"proposal_pef": "student"}, "did you mean proposal_peft"),
]


@pytest.mark.parametrize(("options", "told"), WRONG, ids=lambda each: each if isinstance(each, str) else None)
def test_wrong_options_are_refused(folders, options, told) -> None:
    """Guards: an adapter that does not fit, switches that do not go together, a misspelling."""
    with pytest.raises(OptionError, match=told):
        power_hf(folders, **{name: folders.get(value, value) for name, value in options.items()})


def test_a_server_has_no_second_model() -> None:
    """Guards: an option that power-api would drop."""
    from lm_power.harness.power_api import PowerAPI

    with pytest.raises(OptionError, match=r"proposal_peft=x: needs .* probability under two models"):
        PowerAPI("http://localhost:1/v1/completions", proposal_peft="x")


def test_gen_kwargs_cannot_load_an_adapter(folders) -> None:
    """Guards: an adapter named where the model is loaded already."""
    from lm_power.harness.options import plan_generation

    with pytest.raises(OptionError, match="proposal_peft in --gen_kwargs"):
        plan_generation({"proposal_peft": "x"}, SamplerConfig(), None, 8)
