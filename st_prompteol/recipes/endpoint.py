"""A language model behind an HTTP endpoint: concurrent requests with retries."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from json import JSONDecodeError
from typing import Any

from huggingface_hub import InferenceClient, get_token

from st_prompteol.failures import check_whole, may_pass, retrying, status_of
from st_prompteol.recipes.llm import PROMPT, Answered, as_word

_AGAIN = "That was not exactly one word of letters and hyphens. Answer with one word only."
_MOST_ANSWERS = 5  # to the same question, until one is a word
_UNREADABLE = (JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, IndexError, AttributeError)


@dataclass(frozen=True)
class Endpoint:
    """A chat model behind an OpenAI-compatible endpoint or a Hugging Face provider.

    Args:
        name: Name of the model at the endpoint.
        base_url: URL of the endpoint, e.g. `http://localhost:8000/v1`. Defaults to None: Hugging Face's providers.
        provider: One of Hugging Face's providers. Defaults to None: the first that serves the model.
        key_variable: Environment variable that holds the API key. Defaults to None: the Hugging Face token for a
            provider, no key for a `base_url`.
        timeout: Timeout of a request, in seconds. Defaults to 60.
        concurrency: Maximum number of concurrent requests. Defaults to 8.
        prompt: The question, with `{sentence}` as a placeholder. Defaults to a question for one word.

    Example:
        >>> llm = Endpoint("my-chat-model", base_url="http://localhost:8000/v1")
        >>> build_demonstrations("candidates.jsonl", llm=llm)  # doctest: +SKIP
    """

    name: str
    base_url: str | None = None
    provider: Any = None  # a name that huggingface_hub lists
    key_variable: str | None = None
    timeout: float = 60.0
    concurrency: int = 8
    prompt: str = PROMPT

    def __post_init__(self) -> None:
        check_whole(concurrency=self.concurrency)
        if not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout!r} leaves no time for an answer: give seconds, more than 0.")

    def ask(self, sentences: Sequence[str]) -> Iterator[Answered]:
        """See `LLM.ask`; if the first `concurrency` sentences all fail, the remaining ones are skipped.

        Raises:
            ValueError: If the key is not set, or the endpoint rejects the question as invalid.
            PermissionError: If the endpoint rejects the key.
            FileNotFoundError: If the model or the address does not exist.
        """
        client = self._client()
        failures: list[str | None] = []  # per finished sentence; None if it was answered

        def ask_one(sentence: str) -> Answered:
            if len(failures) >= self.concurrency and None not in failures:
                return sentence, [], failures[-1]
            answers, failure = self._ask_one(client, sentence)
            failures.append(failure)
            return sentence, answers, failure

        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(ask_one, sentence) for sentence in sentences]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask_one(self, client: InferenceClient, sentence: str) -> tuple[list[str], str | None]:
        """Returns all answers to a question, of which only the last may be a word, and the last failure if any."""
        answers: list[str] = []
        messages = [{"role": "user", "content": self.prompt.format(sentence=sentence)}]
        try:
            while len(answers) < _MOST_ANSWERS:
                answer = retrying(partial(self._complete, client, messages), _may_pass)
                answers.append(answer)
                if as_word(answer, sentence) is not None:
                    break
                shown = {"role": "assistant", "content": answer or "-"}
                messages = [messages[0], shown, {"role": "user", "content": _AGAIN}]
        except Exception as error:
            if not _may_pass(error):
                raise self._refusal(error) from None
            return answers, _reason(error)
        return answers, None

    def _complete(self, client: InferenceClient, messages: list[dict[str, str]]) -> str:
        completion = client.chat_completion(messages, model=self.name, max_tokens=32, temperature=0.0)
        answer = completion.choices[0].message.content
        if not isinstance(answer, str):
            raise TypeError("the answer holds no text")
        return answer

    def _client(self) -> InferenceClient:
        variable = self.key_variable
        key = os.environ.get(variable) if variable else None
        if variable and not key:
            raise ValueError(
                f"The environment variable {variable}, which is to hold the key, is not set: export {variable}=…"
            )
        if self.base_url is not None:
            # without a key, huggingface_hub would send the Hugging Face token to that server
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
            return ValueError(f"{place} calls the question invalid ({status}): choose another model.")
        return error


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, _UNREADABLE) or may_pass(error)


def _reason(error: Exception) -> str:
    if isinstance(error, _UNREADABLE):
        return f"the answer could not be read ({type(error).__name__})"
    status = status_of(error)
    return f"the endpoint answered {status}" if status else "the endpoint could not be reached in time"
