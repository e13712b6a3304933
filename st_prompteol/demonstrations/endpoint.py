"""A language model behind an endpoint: asked over HTTP, several questions at once, again where it fails."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any

from huggingface_hub import InferenceClient, get_token

from st_prompteol.demonstrations.llm import PROMPT
from st_prompteol.failures import may_pass, retry_after, status_of

_AGAIN = "That was not exactly one word of letters and hyphens. Answer with one word only."


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
                    time.sleep(max(retry_after(error), self._pause(attempt)))
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
