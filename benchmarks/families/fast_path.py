"""Compares the fast path with transformers' own forward pass for every decoder architecture in transformers.

    python -m benchmarks.families.fast_path --tokenizer TOKENIZER --output build/families

Uses small random models of each architecture; windows and chunks shorter and longer than the sentences; 0, 1 and 16
demonstrations; sentences of one to some hundred words; the last, the second-to-last and the first layer. Each
embedding is compared with the hidden state that transformers' own attention computes for the sentence alone. The table
shows the largest difference, relative to the largest value, and the number of cases that used the prefix cache.
Architectures that cannot be built at this size are listed with the reason.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import logging
import signal
import tempfile
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModel, AutoTokenizer

from benchmarks.speed.measuring import Row, measure_rows, report, table
from benchmarks.speed.reference import JOCKEY
from st_prompteol import PromptEOL
from st_prompteol.llm.decoders import is_decoder
from st_prompteol.llm.reading import Reading

SENTENCES = ["x", "A man is playing a guitar.", "Is it raining?", " ".join(["The cat sat on the mat, and"] * 14)]
# Small values for the configuration keys of any architecture
SMALL = {
    32: "hidden_size n_embd d_model dim embed_dim word_embed_proj_dim lru_width",
    48: "intermediate_size ffn_dim n_inner d_ff ffn_hidden_size decoder_ffn_dim",
    24: "moe_intermediate_size shared_expert_intermediate_size",
    4: (
        "num_hidden_layers n_layer n_layers num_layers decoder_layers num_attention_heads n_head n_heads "
        "num_heads decoder_attention_heads rotary_dim mamba_n_heads mamba_num_heads"
    ),
    2: (
        "num_key_value_heads num_local_experts num_experts n_routed_experts moe_num_experts index_n_heads "
        "mamba_expand max_window_layers num_global_key_value_heads"
    ),
    8: (
        "head_dim d_kv qk_rope_head_dim qk_nope_head_dim v_head_dim query_pre_attn_scalar mamba_d_state "
        "ssm_state_size state_size hidden_size_per_layer_input global_head_dim ple_hidden_size"
    ),
    1: "num_experts_per_tok n_shared_experts moe_topk n_group topk_group first_k_dense_replace",
    16: "q_lora_rank kv_lora_rank index_head_dim mamba_d_head mamba_head_dim",
    2048: "max_position_embeddings n_positions max_seq_len",
    600: "vocab_size_per_layer_input",
    0: "pad_token_id",
}
VALUES = {name: number for number, names in SMALL.items() for name in names.split()}
_DERIVED = {"head_dim", "num_key_value_heads"}  # None in some architectures, which then derive it from other values
LENGTHS = set(
    "sliding_window attention_chunk_size window_size keep_window_size index_topk local_attention sliding_window_size "
    "attention_window_size original_max_position_embeddings".split()
)


def build(config_class: Any, vocabulary: int, length: int) -> Any:
    """Builds a small body, with `length` for all settings that are lengths; errors are raised."""
    known = vars(config_class().get_text_config())
    parameters = inspect.signature(config_class.__init__).parameters
    names = {name for name in (*known, *parameters) if not name.startswith("_")}
    settable = {name for name in names if known.get(name, 0) is not None or name in _DERIVED}
    values = {name: value for name, value in VALUES.items() if name in settable}
    if "attention_types" in names:  # GPT-Neo's, one per layer
        values["attention_types"] = [[["global", "local"], 2]]
    values |= {name: length for name in LENGTHS & names if known.get(name) is not None}
    config = config_class(**values, vocab_size=vocabulary).get_text_config()
    if hasattr(config, "use_sliding_window") and known.get("sliding_window") is not None:
        config.use_sliding_window = True
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
    if size > 7_000_000:
        raise ValueError(f"it stays large: {size:,} parameters")
    torch.manual_seed(0)
    body = AutoModel.from_config(config)
    for parameter in body.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.2 / parameter.shape[-1] ** 0.5)
    return body


@torch.no_grad()
def oracle(body: Any, model: PromptEOL, batches: list[list[str]]) -> torch.Tensor:
    """Computes each batch with transformers' own attention."""
    rows = []
    for batch in batches:
        features = model.preprocess(batch)
        inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
        hidden = body(**inputs, use_cache=False, output_hidden_states=True).hidden_states[model.layer]
        rows += [states[mask.bool()][-1] for states, mask in zip(hidden, inputs["attention_mask"], strict=True)]
    return torch.stack(rows).float()


def compare(body: Any, tokenizer: Any) -> tuple[float, int, int]:
    """Returns the largest difference, the number of cases that used the prefix cache, and the number of all cases."""
    worst, shared, cases = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        body.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = PromptEOL(folder)
    plain = copy.deepcopy(body).eval()
    model[0].put_body(body.eval(), True)  # some architectures initialize unsaved buffers randomly
    blocks = model[0].config.get_text_config().num_hidden_layers
    template = model.template
    for shots, layer in product((0, 1, 16), (-1, -2, -blocks)):
        model.template = replace(template, demonstrations=(JOCKEY,) * shots)
        model.layer = layer
        for batches in ([[sentence] for sentence in SENTENCES], [SENTENCES[:3]]):
            got, heads = [], []
            for batch in batches:
                reading = Reading(last_only=True)
                got.append(torch.as_tensor(model.encode(batch, reading=reading)).float())
                heads.append(bool(reading.heads))
            # in some architectures a row depends on others: without prefix cache, compare whole batches
            alone = [[sentence] for batch in batches for sentence in batch]
            expected = oracle(plain, model, alone if all(heads) else batches)
            if not torch.isfinite(expected).all():
                raise ValueError("transformers' own hidden states are not finite")
            worst = max(worst, float((torch.cat(got) - expected).abs().max() / expected.abs().max()))
            shared, cases = shared + sum(heads), cases + len(heads)
    return worst, shared, cases


def measure(config_class: Any, tokenizer: Any, length: int, seconds: int) -> tuple[float, int, int] | None:
    """Builds and compares a family; None if it has no lengths to set."""
    if not is_decoder(config_class()):
        raise ValueError("it is not a decoder")
    signal.alarm(seconds)
    try:
        body = build(config_class, len(tokenizer) + 8, length)
        return compare(body, tokenizer) if length == 1024 or LENGTHS & set(body.config.to_dict()) else None
    finally:
        signal.alarm(0)


def give_up(*_: Any) -> None:
    """Stops a family that takes too long."""
    raise TimeoutError("it takes too long")


def to_markdown(rows: list[Row]) -> str:
    """Formats the comparisons."""
    lines = [
        [row["family"], row["lengths"], f"{row['result'][0]:.0e}", f"{row['result'][1]} of {row['result'][2]}"]
        for row in rows
        if row["result"] is not None
    ]
    return table("family | lengths | difference | shared prefix", lines)


def main() -> None:
    """Compares every architecture and prints the table, with those that failed below."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder or repository of a tokenizer")
    parser.add_argument("--output", type=Path, help="where to write, without suffix")
    parser.add_argument("--families", nargs="*", help="model types; all by default")
    parser.add_argument("--seconds", type=int, default=120, help="how long a family may take")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, give_up)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, model_max_length=2048)
    families = {each.model_type: each for each in MODEL_FOR_CAUSAL_LM_MAPPING}
    rows = [
        ({"family": name, "lengths": length}, partial(measure, families[name], tokenizer, length, args.seconds))
        for name, length in product(args.families or families, (1024, 40))
    ]
    report(measure_rows(rows, args.output and args.output.with_suffix(".jsonl")), to_markdown, args.output)


if __name__ == "__main__":
    main()
