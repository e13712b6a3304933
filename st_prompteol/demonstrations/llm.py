"""Asking a language model for the one word of a sentence: over HTTP or on this machine, each answer kept at once."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import InferenceClient, get_token
from tqdm.auto import tqdm

from st_prompteol.corpus import read_lines
from st_prompteol.failures import explained, may_pass, status_of
from st_prompteol.files import append_lines
from st_prompteol.template import Demonstration, PromptTemplate

logger = logging.getLogger(__name__)

PROMPT = (
    "Answer with exactly one word, the one that best stands for the meaning of this sentence: letters and hyphens "
    'only, no explanation.\nSentence: "{sentence}"'
)
_AGAIN = "That was not exactly one word of letters and hyphens. Answer with one word only."
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_LETTERS = range(2, 31)
# Base models complete text, so they are shown what a word looks like; from the paper's demonstrations
_SHOWN = (
    Demonstration("A jockey riding a horse.", "Equestrian"),
    Demonstration("meat from a deer.", "Venison"),
    Demonstration("A man is playing on a guitar and singing.", "Music"),
)


class LLM(Protocol):
    """What answers: an `Endpoint` or a `LocalLM`."""

    @property
    def name(self) -> str:
        """The model, as the record of answers calls it."""

    @property
    def prompt(self) -> str:
        """What it is asked, `{sentence}` in place of the sentence."""

    def ask(self, sentences: Sequence[str], record: Callable[[str, str], bool]) -> str | None:
        """Asks for the word of each sentence.

        Args:
            sentences: The sentences.
            record: Takes a sentence and an answer as soon as it is there; says whether it is a word. It may be called
                from several threads.

        Returns:
            Why some sentences have no answer, None if there is nothing to say.
        """


@dataclass(frozen=True)
class Endpoint:
    """A chat model behind an OpenAI-compatible endpoint or a Hugging Face provider.

    Args:
        name: The model, as the endpoint calls it.
        base_url: Where the endpoint is, e.g. `http://localhost:8000/v1`. Defaults to None: Hugging Face's providers.
        provider: One of these providers. Defaults to None: the first that serves the model.
        key_variable: The environment variable that holds the key. Defaults to None: the Hugging Face token for a
            provider, none for a `base_url`.
        timeout: How long an answer may take, in seconds. Defaults to 60.
        concurrency: How many questions are under way at once. Defaults to 8.
        attempts: How often a question is asked, at most. Defaults to 5.
        backoff: The pause before the second attempt, in seconds; it doubles from attempt to attempt. Defaults to 1.
    """

    name: str
    base_url: str | None = None
    provider: Any = None  # a name that upstream lists
    key_variable: str | None = None
    timeout: float = 60.0
    concurrency: int = 8
    attempts: int = 5
    backoff: float = 1.0
    prompt: str = PROMPT

    def ask(self, sentences: Sequence[str], record: Callable[[str, str], bool]) -> str | None:
        """As `LLM.ask`.

        Raises:
            ValueError: If the key is not set, or the endpoint calls the question invalid.
            PermissionError: If the endpoint refuses the key.
            FileNotFoundError: If it knows no such model or address.
        """
        client = self._client()
        down = threading.Event()  # set when nothing but failures comes back: the rest need not wait for theirs
        failures: list[str] = []
        successes: list[str] = []

        def ask_one(sentence: str) -> None:
            if down.is_set():
                return
            error = self._ask_one(client, sentence, record)
            if error is None:
                successes.append(sentence)
                return
            failures.append(error)
            if not successes and len(failures) >= self.concurrency:
                down.set()

        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(ask_one, sentence) for sentence in sentences]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)
        return failures[-1] if failures else None

    def _ask_one(self, client: InferenceClient, sentence: str, record: Callable[[str, str], bool]) -> str | None:
        """Returns what went wrong last, None if there is a word or at least an answer."""
        messages = [{"role": "user", "content": self.prompt.format(sentence=sentence)}]
        failure: str | None = None
        for attempt in range(self.attempts):
            try:
                done = client.chat_completion(messages, model=self.name, max_tokens=32, temperature=0.0)
                answer = done.choices[0].message.content
                if not isinstance(answer, str):
                    raise TypeError("the answer holds no text")
            except (JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, IndexError, AttributeError) as error:
                failure = f"the answer could not be read ({type(error).__name__})"
            except Exception as error:
                if not may_pass(error):
                    raise self._refusal(error) from None
                status = status_of(error)
                failure = f"the endpoint answered {status}" if status else "the endpoint could not be reached in time"
                if attempt + 1 < self.attempts:
                    time.sleep(max(_retry_after(error), self._pause(attempt)))
                continue
            else:
                failure = None
                if record(sentence, answer):
                    return None
                shown = {"role": "assistant", "content": answer or "-"}
                messages = [messages[0], shown, {"role": "user", "content": _AGAIN}]
            if attempt + 1 < self.attempts and failure:
                time.sleep(self._pause(attempt))
        return failure

    def _pause(self, attempt: int) -> float:
        """Seconds before the next attempt; a little apart, so that those that failed together do not come together."""
        return float(self.backoff * 2**attempt * random.uniform(0.5, 1.0))

    def _client(self) -> InferenceClient:
        variable = self.key_variable
        key = os.environ.get(variable) if variable else None
        if variable and not key:
            raise ValueError(
                f"The environment variable {variable}, which is to hold the key, is not set: export {variable}=…"
            )
        if self.base_url is not None:
            # without a key upstream would send the Hugging Face token there, which is nobody else's business
            return InferenceClient(base_url=self.base_url, api_key=key or "none", timeout=self.timeout)
        if not key and not get_token():
            raise ValueError(
                "Hugging Face's providers need a token: log in with `hf auth login`, set HF_TOKEN, or pass a base_url."
            )
        return InferenceClient(provider=self.provider, api_key=key, timeout=self.timeout)

    def _refusal(self, error: Exception) -> Exception:
        place, status = self.base_url or f"the provider of {self.name!r}", status_of(error)
        if status in (401, 403):
            remedy = "name the environment variable that holds the right one (--key-variable)"
            return PermissionError(f"{place} refuses the key ({status}): {remedy}.")
        if status == 404:
            return FileNotFoundError(f"{place} knows no model {self.name!r} at this address (404): check both.")
        if status is not None:
            return ValueError(
                f"{place} calls the question invalid ({status}): choose another model than {self.name!r}."
            )
        return error


@dataclass(frozen=True)
class LocalLM:
    """A causal language model on this machine, by transformers: a chat model is asked, a base model completes.

    Args:
        name: Its repository or folder.
        device: Where it runs. Defaults to None: the accelerator if there is one.
        batch_size: Sentences per forward pass. Defaults to 16.
    """

    name: str
    device: str | None = None
    batch_size: int = 16

    @property
    def prompt(self) -> str:
        """What a base model is to complete; a chat model is asked `PROMPT`."""
        return PromptTemplate(demonstrations=_SHOWN, preprocessing="none").render("{sentence}")

    def ask(self, sentences: Sequence[str], record: Callable[[str, str], bool]) -> str | None:
        """As `LLM.ask`; each sentence is asked once, for the likeliest answer.

        Raises:
            FileNotFoundError: If there is no such model.
        """
        import torch
        from sentence_transformers.util import get_device_name
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = self.device or get_device_name()
        with explained(self.name):
            tokenizer = AutoTokenizer.from_pretrained(self.name, padding_side="left")
            model = AutoModelForCausalLM.from_pretrained(
                self.name, dtype=torch.float32 if device == "cpu" else "auto"
            ).to(device)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
        for start in range(0, len(sentences), self.batch_size):
            batch = list(sentences[start : start + self.batch_size])
            if tokenizer.chat_template:
                chats = [[{"role": "user", "content": PROMPT.format(sentence=sentence)}] for sentence in batch]
                texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
            else:
                texts = [self.prompt.replace("{sentence}", sentence.replace('"', "'")) for sentence in batch]
            special = not tokenizer.chat_template  # a chat template writes its BOS itself
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
                # a base model goes on after the closing quote
                record(sentence, answer if tokenizer.chat_template else answer.split('"')[0])
        return None


def ask_for_words(
    llm: LLM, sentences: Sequence[str], answers: Path, *, show_progress_bar: bool = False
) -> tuple[dict[str, str], str | None]:
    """Asks for the word of each sentence, except for those that `answers` has an answer for from the same question.

    Args:
        llm: What is asked.
        sentences: Distinct sentences.
        answers: A `.jsonl` file of all answers, good and bad, each appended when it comes.
        show_progress_bar: Whether to show one. Defaults to False.

    Returns:
        Sentence -> word, as far as there is one, and why some have none if there is anything to say.
    """
    words: dict[str, str] = {}
    answered: set[str] = set()
    for row in _read_answers(answers):
        if (row["model"], row["prompt"]) == (llm.name, llm.prompt):
            answered.add(row["sentence"])
            if (word := as_word(row["answer"], row["sentence"])) is not None:
                words[row["sentence"]] = word
    if answered:
        logger.info("%d sentences have an answer in %s and are not asked again.", len(answered), answers)
    lock = threading.Lock()

    def record(sentence: str, answer: str) -> bool:
        word = as_word(answer, sentence)
        row = {"sentence": sentence, "answer": answer, "word": word, "model": llm.name, "prompt": llm.prompt}
        with lock:
            append_lines(answers, [json.dumps(row, ensure_ascii=False)])
            if sentence not in answered:
                answered.add(sentence)
                bar.update()
            if word is not None:
                words[sentence] = word
        return word is not None

    open_ = [sentence for sentence in sentences if sentence not in answered]
    reason = None
    with tqdm(total=len(open_), unit=" sentences", disable=not show_progress_bar) as bar:
        if open_:
            reason = llm.ask(open_, record)
    return {sentence: words[sentence] for sentence in sentences if sentence in words}, reason


def as_word(answer: str, sentence: str) -> str | None:
    """Returns the word that an answer is, its first letter a capital; None if it is none, or repeats the sentence."""
    word = answer.strip().strip("\"'`“”‘’*").rstrip(".!").strip("\"'`“”‘’*")
    if _WORD.fullmatch(word) is None or len(word) not in _LETTERS:
        return None
    if re.findall(r"\w+", word.lower()) == re.findall(r"\w+", sentence.lower()):
        return None
    return word[0].upper() + word[1:]


def _read_answers(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.exists():
        return
    for number, line in read_lines(path):
        try:
            row = json.loads(line)
            if not all(isinstance(row[name], str) for name in ("sentence", "answer", "model", "prompt")):
                raise ValueError(line)
        except (ValueError, KeyError, TypeError):
            if line.strip():
                logger.warning("%s, line %d, was cut short and is left out.", path, number)
            continue
        yield row


def _retry_after(error: BaseException) -> float:
    """The seconds that a server asks to wait, at most a minute, 0 if it does not say."""
    response = getattr(error, "response", None)
    try:
        return min(60.0, float(response.headers["retry-after"])) if response is not None else 0.0
    except (KeyError, ValueError):
        return 0.0
