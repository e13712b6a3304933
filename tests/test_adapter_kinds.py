"""Every kind of adapter that peft makes, and every option of LoRA: the table of docs/adapters.md, row by row.

The oracle is peft's own model on the causal LM, with random weights: the last hidden state of the last token.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from st_prompteol import PromptEOL
from st_prompteol.llm.adapter_files import check_kind

from .helpers.oracles import assert_alike
from .helpers.processes import PlainProcess
from .helpers.sentences import SENTENCES

Make = Callable[[], PeftConfig]
PAGE = Path(__file__).parent.parent / "docs/adapters.md"
LAYERS = ["q_proj", "v_proj", "down_proj"]
SHARED = "shares weights between layers"
VIRTUAL = "adds virtual tokens"
_TASK = {"task_type": "CAUSAL_LM"}


def lora(**options: Any) -> Make:
    return lambda: LoraConfig(**{"r": 4, "target_modules": LAYERS, **_TASK, **options})


def of(name: str, **options: Any) -> Make:
    return lambda: getattr(peft, name)(**{"target_modules": LAYERS, **_TASK, **options})


def virtual(name: str, **options: Any) -> Make:
    return lambda: getattr(peft, name)(**_TASK, **options)


# The row's name: what makes the configuration; why it is refused, empty if it is opened
KINDS: dict[str, tuple[Make, str]] = {
    "LORA": (lora(), ""),
    "ADALORA": (of("AdaLoraConfig", init_r=4, target_r=2, total_step=10), ""),
    "ADAMSS": (of("AdamssConfig", r=8, num_subspaces=2), ""),
    "BEFT": (of("BeftConfig", target_modules=["v_proj"]), ""),
    "BOFT": (of("BOFTConfig", boft_block_size=4), ""),
    "C3A": (of("C3AConfig", block_size=8), ""),
    "DEFT": (of("DeftConfig", r=4), ""),
    "DELORA": (of("DeloraConfig", r=4), ""),
    "FOURIERFT": (of("FourierFTConfig", n_frequency=50), ""),
    "GLORA": (of("GloraConfig", r=4), ""),
    "GRALORA": (of("GraloraConfig", r=4, hybrid_r=2, gralora_k=2), ""),
    "HIRA": (of("HiraConfig", r=4), ""),
    "HRA": (of("HRAConfig", r=4), ""),
    "IA3": (of("IA3Config", feedforward_modules=["down_proj"]), ""),
    "LN_TUNING": (of("LNTuningConfig", target_modules=["input_layernorm", "norm"]), ""),
    "LOHA": (of("LoHaConfig", r=4), ""),
    "LOKR": (of("LoKrConfig", r=4), ""),
    "MISS": (of("MissConfig", r=4), ""),
    "OFT": (of("OFTConfig", oft_block_size=8, r=0), ""),
    "OSF": (of("OSFConfig", effective_rank=4), ""),
    "PEANUT": (of("PeanutConfig", r=4), ""),
    "PSOFT": (of("PsoftConfig", r=4), ""),
    "ROAD": (of("RoadConfig", group_size=8), ""),
    "SHIRA": (of("ShiraConfig", r=2), ""),
    "SUPERTUNING": (of("SupertuningConfig"), ""),
    "TRAINABLE_TOKENS": (of("TrainableTokensConfig", token_indices=[4, 16], target_modules=["embed_tokens"]), ""),
    "WAVEFT": (of("WaveFTConfig", n_frequency=50), ""),
    "FROD": (of("FrodConfig"), SHARED),
    "LILY": (of("LilyConfig", r=4), SHARED),
    "PVERA": (of("PveraConfig", r=4), SHARED),
    "RANDLORA": (of("RandLoraConfig", r=4), SHARED),
    "TINYLORA": (of("TinyLoraConfig", r=2), SHARED),
    "UNILORA": (of("UniLoraConfig", r=4), SHARED),
    "VBLORA": (of("VBLoRAConfig", num_vectors=8, vector_length=16), SHARED),
    "VERA": (of("VeraConfig", r=4), SHARED),
    "ADAPTION_PROMPT": (virtual("AdaptionPromptConfig", adapter_len=3, adapter_layers=2), VIRTUAL),
    "CARTRIDGE": (virtual("CartridgeConfig", num_virtual_tokens=3), VIRTUAL),
    "CPT": (virtual("CPTConfig", cpt_token_ids=[5], cpt_mask=[1], cpt_tokens_type_mask=[1]), VIRTUAL),
    "MULTITASK_PROMPT_TUNING": (virtual("MultitaskPromptTuningConfig", num_virtual_tokens=3, num_tasks=2), VIRTUAL),
    "P_TUNING": (virtual("PromptEncoderConfig", num_virtual_tokens=3), VIRTUAL),
    "PREFIX_TUNING": (virtual("PrefixTuningConfig", num_virtual_tokens=3), VIRTUAL),
    "PROMPT_TUNING": (virtual("PromptTuningConfig", num_virtual_tokens=3), VIRTUAL),
    "POLY": (of("PolyConfig", r=4), "needs the number of a task"),
    "SHADOW": (of("ShadowConfig", r=4), "runs a second model"),
    "XLORA": (virtual("XLoraConfig", hidden_size=32, adapters={}), "mixes several adapters"),
}
_PATHS = ["model.layers.0.self_attn.q_proj", "1.mlp.up_proj"]
LORA: dict[str, tuple[Make, str]] = {
    "use_dora": (lora(use_dora=True), ""),
    "use_rslora": (lora(use_rslora=True), ""),
    "lora_bias": (lora(lora_bias=True), ""),
    "bias": (lora(bias="all"), ""),
    "modules_to_save: norm": (lora(modules_to_save=["norm"]), ""),
    "modules_to_save: embed_tokens, lm_head": (lora(modules_to_save=["embed_tokens", "lm_head"]), ""),
    "target_modules: a head": (lora(target_modules=["q_proj", "lm_head"]), ""),
    "target_modules: a head alone": (lora(target_modules=["lm_head"]), "adapts nothing that an embedding reads"),
    "target_modules: embeddings": (lora(target_modules=["q_proj", "embed_tokens"]), ""),
    "target_modules: paths": (lora(target_modules=_PATHS), ""),
    "target_modules: a pattern": (lora(target_modules=r"model\.layers\.[01]\.self_attn\.(q|v)_proj"), ""),
    "target_modules: all-linear": (lora(target_modules="all-linear"), ""),
    "exclude_modules": (lora(target_modules="all-linear", exclude_modules=r"model\.layers\.0\..*"), ""),
    "rank_pattern": (lora(rank_pattern={"q_proj": 8, "model.layers.0.self_attn.v_proj": 2}), ""),
    "alpha_pattern": (lora(alpha_pattern={r"^model\.layers\.1\.mlp\.down_proj": 32}), ""),
    "layers_to_transform": (lora(layers_to_transform=[1]), ""),
    "layers_pattern": (lora(layers_to_transform=[0, 2], layers_pattern="layers"), ""),
    "layer_replication": (lora(layer_replication=[[0, 2], [1, 3]]), ""),
    "trainable_token_indices": (lora(trainable_token_indices={"embed_tokens": [4, 16], "lm_head": [4]}), ""),
    "target_parameters": (lora(target_modules=[], target_parameters=["self_attn.q_proj.weight"]), ""),
    "init_lora_weights: pissa": (lora(init_lora_weights="pissa"), ""),
    "init_lora_weights: olora": (lora(init_lora_weights="olora"), ""),
    "init_lora_weights: eva": (lora(init_lora_weights="eva"), ""),
    "init_lora_weights: orthogonal": (lora(init_lora_weights="orthogonal"), ""),
    "init_lora_weights: pissa_niter_4": (lora(init_lora_weights="pissa_niter_4"), "changes the base by an SVD"),
    "alora_invocation_tokens": (lora(alora_invocation_tokens=[50, 51]), "is an activated LoRA"),
}
# Fields of LoraConfig that change nothing that is opened, or what trains only
_WITHOUT_ROW = set(
    "kasa_config megatron_config monteclora_config use_bdlora velora_config "  # refused, see below
    "arrow_config auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config fan_in_fan_out "
    "inference_mode loftq_config lora_alpha lora_dropout lora_ga_config megatron_core peft_type "
    "peft_version qalora_group_size r revision runtime_config task_type use_qalora".split()
)
ROWS = {**KINDS, **LORA}
QUICK = ["use_dora", "target_modules: a pattern", "modules_to_save: embed_tokens, lm_head", "IA3"]


def table(rows: dict[str, tuple[Make, str]], head: str) -> str:
    """The rows as they stand in docs/adapters.md."""
    lines = [f"| {head} | opened | why not |", "|---|---|---|"]
    lines += [f"| {name} | {'no' if why else 'yes'} | {why} |" for name, (_, why) in rows.items()]
    return "\n".join(lines)


def test_the_page_holds_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert table(KINDS, "kind") in page
    assert table(LORA, "option of `LoraConfig`") in page


def test_the_table_has_every_kind_and_every_option_of_this_peft() -> None:
    assert set(KINDS) == {kind.name for kind in PeftType}
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields - {name.partition(":")[0] for name in LORA} - _WITHOUT_ROW == set()


@pytest.fixture(scope="module")
def base(causal_lms: dict[str, str]) -> str:
    return causal_lms["llama"]


def randomize(model: torch.nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data += torch.randn_like(parameter) * 0.1


def last_states(model: Any, base: str, read: Callable[[Any], torch.Tensor]) -> np.ndarray[Any, Any]:
    tokenizer, template = AutoTokenizer.from_pretrained(base), PromptEOL(base).template
    texts = [template.render(sentence) for sentence in SENTENCES]
    with torch.no_grad():
        rows = [read(model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)) for text in texts]
    return torch.stack(rows).numpy()


def test_options_that_were_not_tried_are_refused(base: str) -> None:
    for option in ("kasa_config", "megatron_config", "monteclora_config", "use_bdlora", "velora_config"):
        config = LoraConfig(r=4)
        setattr(config, option, {"any": 1})
        with pytest.raises(ValueError, match=f"was made with {option}"):
            check_kind("it", config)


def check_row(name: str, base: str, folder: Path, plain: PlainProcess) -> None:
    make, why = ROWS[name]
    if why:
        config = make()
        if name != "target_modules: a head alone":
            with pytest.raises(ValueError, match=why):
                PromptEOL(base).add_adapter(config)
        config.base_model_name_or_path = base
        config.save_pretrained(str(folder))
        if name == "target_modules: a head alone":
            get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
        with pytest.raises(ValueError, match=why):
            PromptEOL(str(folder))
        return
    torch.manual_seed(0)
    own = get_peft_model(AutoModelForCausalLM.from_pretrained(base), make())
    randomize(own)
    own.eval().save_pretrained(folder / "peft")
    expected = last_states(own, base, lambda output: output.hidden_states[-1][0, -1])
    scale = np.abs(expected).max()
    assert np.abs(PromptEOL(base).encode(SENTENCES) - expected).max() / scale > 1e-3
    model = PromptEOL(str(folder / "peft"))
    assert_alike(model.encode(SENTENCES), expected)
    saved = str(folder / "saved")
    model.save_pretrained(saved)
    assert_alike(plain.encode(saved, SENTENCES), expected)
    assert_alike(PromptEOL(saved).encode(SENTENCES), expected)
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(base), saved).eval()
    assert_alike(last_states(theirs, base, lambda output: output.last_hidden_state[0, -1]), expected)


@pytest.mark.filterwarnings("ignore:::peft", "ignore::UserWarning")
@pytest.mark.parametrize("name", QUICK)
def test_common_rows(name: str, base: str, tmp_path: Path, plain: PlainProcess) -> None:
    check_row(name, base, tmp_path, plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::peft", "ignore::UserWarning")
@pytest.mark.parametrize("name", [name for name in ROWS if name not in QUICK])
def test_every_row(name: str, base: str, tmp_path: Path, plain: PlainProcess) -> None:
    check_row(name, base, tmp_path, plain)


def test_an_adapter_on_changed_weights_is_not_saved(base: str, tmp_path: Path) -> None:
    model = PromptEOL(base)
    model.add_adapter(lora(init_lora_weights=False)())
    model.merge_adapter()
    model.add_adapter(lora(init_lora_weights=False)())
    with pytest.raises(ValueError, match=r"weights below it have changed.*merge_adapter\(\) and save the full model"):
        model.save_pretrained(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_new_adapters_take_names_of_the_causal_lm(base: str) -> None:
    for options in ({"layers_to_transform": [1]}, {"target_modules": r"model\.layers\.1\..*q_proj"}):
        model = PromptEOL(base)
        model.add_adapter(lora(**options)())
        adapted = {re.sub(r"\.lora_A.*", "", name) for name, _ in model.named_parameters() if "lora_A" in name}
        assert {name.split("layers.")[1].split(".")[0] for name in adapted} == {"1"}


def test_modules_that_were_saved_come_back_with_their_adapter(base: str) -> None:
    model = PromptEOL(base)
    model.add_adapter(lora(modules_to_save=["norm"], init_lora_weights=False)())
    randomize(model)
    expected = model.encode(SENTENCES)
    model.disable_adapters()
    assert np.abs(model.encode(SENTENCES) - expected).max() > 1e-3
    model.enable_adapters()
    assert_alike(model.encode(SENTENCES), expected)
