"""A local language model, through transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from st_prompteol.failures import check_whole, explain_opening
from st_prompteol.llm.decoders import split_gguf
from st_prompteol.prompt.template import Demonstration, PromptTemplate
from st_prompteol.recipes.llm import PROMPT, Answered

# Examples for base models, which complete text; from the paper's demonstrations
_SHOWN = (
    Demonstration("A jockey riding a horse.", "Equestrian"),
    Demonstration("meat from a deer.", "Venison"),
    Demonstration("A man is playing on a guitar and singing.", "Music"),
)


@dataclass(frozen=True)
class LocalLM:
    """A local causal language model, through transformers: a chat model is asked, a base model completes text.

    Args:
        name: Repository, folder or GGUF file of the model.
        device: Device of the model. Defaults to None: the accelerator if there is one.
        batch_size: Number of sentences per forward pass. Defaults to 16.

    Example:
        >>> llm = LocalLM("facebook/opt-6.7b", batch_size=4)
        >>> build_demonstrations("candidates.jsonl", llm=llm)  # doctest: +SKIP
    """

    name: str
    device: str | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_whole(batch_size=self.batch_size)

    @property
    def prompt(self) -> str:
        """The text that a base model completes; a chat model is asked `PROMPT`."""
        return PromptTemplate(demonstrations=_SHOWN, preprocessing="none").render("{sentence}")

    def ask(self, sentences: Sequence[str]) -> Iterator[Answered]:
        """See `LLM.ask`; each sentence gets one answer, by greedy decoding.

        Raises:
            FileNotFoundError: If the model does not exist.
        """
        import torch
        from sentence_transformers.util import get_device_name
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = self.device or get_device_name()
        with explain_opening(self.name):
            source, gguf_file = split_gguf(self.name)
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=gguf_file, dtype=torch.float32 if device == "cpu" else "auto"
            ).to(device)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
        for start in range(0, len(sentences), self.batch_size):
            batch = list(sentences[start : start + self.batch_size])
            if tokenizer.chat_template:
                chats = [[{"role": "user", "content": PROMPT.format(sentence=sentence)}] for sentence in batch]
                texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
            else:
                texts = [self.prompt.replace("{sentence}", sentence.replace('"', "'")) for sentence in batch]
            special = not tokenizer.chat_template  # a chat template includes the BOS token
            inputs = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=special).to(device)
            with torch.inference_mode():
                made = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=16,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                )
            answers = tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for sentence, answer in zip(batch, answers, strict=True):
                # a base model continues after the closing quote
                yield sentence, [answer if tokenizer.chat_template else answer.split('"')[0]], None
