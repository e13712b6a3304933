"""`PromptEOL`: a `SentenceTransformer` from any decoder LLM, loaded and saved in sentence-transformers' format."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from peft import PeftConfig
from peft.utils.other import AuxiliaryTrainingWrapper
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Normalize, Pooling
from sentence_transformers.util import get_device_name, quantize_embeddings
from sentence_transformers.util.decorators import deprecated_kwargs
from transformers import PreTrainedModel

from st_prompteol.card import PromptEOLModelCardData
from st_prompteol.card.data import README, as_own_data, may_write_card
from st_prompteol.failures import check_whole, explain_gguf, explain_opening
from st_prompteol.fast import encode_distinct
from st_prompteol.llm.adapters import load_adapter, merge_adapter, prepare_config
from st_prompteol.llm.body import shallow_copy
from st_prompteol.llm.cut import Cut, cut_body
from st_prompteol.llm.decoders import split_gguf
from st_prompteol.llm.finite import check_finite, check_weights
from st_prompteol.llm.loaded import adapters_of, commit_of
from st_prompteol.llm.quantization import Quantization, quantization_config
from st_prompteol.llm.reading import Reading
from st_prompteol.modules import LastTokenPooling, PromptEOLTransformer
from st_prompteol.prompt.template import HOLE, Demonstration, PromptTemplate, get_template
from st_prompteol.saved.released import find_released
from st_prompteol.saved.saving import reading_from, saving_into
from st_prompteol.saved.stock import write_stock_form
from st_prompteol.standardization import SHRINKAGE, Method, Standardization, distinct_sentences

if TYPE_CHECKING:
    from st_prompteol.hub import CardOptions, PushReport

logger = logging.getLogger(__name__)
STANDARDIZATION = "standardization"  # name of the module that standardizes embeddings
_NO_WEIGHTS = "On the device 'meta' a model has no weights, so it cannot embed: open it on cpu, cuda or mps."
_upstream = logging.getLogger("sentence_transformers")  # its level enables the progress bars
_QUANTIZED = ("int8", "uint8", "binary", "ubinary")
_CHUNK_BATCHES = 64  # batches per chunk; the embeddings of a chunk are reordered together
# Requirements that sentence-transformers 6 checks before it loads a model
_ADAPTER = {"transformers": {"specifier": ">=5.6", "reason": "transformers 5.0 to 5.5 leave the adapter out"}}


class PromptEOL(SentenceTransformer):
    """A sentence embedding model from a decoder LLM: the last token's hidden state of a sentence in a template.

    Loads a base LLM, a saved model (of this package or of plain sentence-transformers, in this format), or an adapter
    repository with or without tokenizer files. Saved models load with plain `SentenceTransformer`.

    Args:
        model_name_or_path: Hub id or folder, a GGUF file (`folder/model.gguf`, `user/repository/model.gguf`), or
            `"tiny"` for the small model that is included in the package for experiments. Defaults to None, which
            requires `modules`.
        modules: Modules to use instead; the first one must be a `PromptEOLTransformer`. Defaults to None.
        template: A `PromptTemplate`, the name of one in `TEMPLATES`, or a text with one `{sentence}`. Defaults to
            None: the template of a saved model, `"prompteol"` for a base LLM.
        demonstrations: Demonstrations to place before every sentence, replacing the template's own. Defaults to an
            empty sequence, which keeps the template's own.
        layer: The hidden state to use: -1 is the last one, after the final norm; -2 the output of the second-to-last
            block. Defaults to None: the layer of a saved model, -1 for a base LLM.
        quantization: `"nf4"` or `"int8"` (bitsandbytes), also on a CPU. Defaults to None.
        fast: Whether to compute the shared prefix of the sentences once. Embeddings are the same either way. Defaults
            to True.
        max_seq_length: The maximum number of tokens of a sentence in its template, including BOS and demonstrations.
            Longer sentences are truncated at their own end; the end of the template is kept. Defaults to None: the
            limit of model and tokenizer.
        device: The device, e.g. `"cuda"` or `"cpu"`. Defaults to None: the accelerator if there is one.
        device_map: How accelerate distributes the model over devices, e.g. `"auto"`. Cannot be combined with `device`.
            Defaults to None.
        model_kwargs: Keyword arguments for `from_pretrained` of the model. Without a `dtype`, a saved model uses the
            dtype that it was saved from; a base LLM uses float32 on a CPU and the checkpoint's dtype elsewhere.
            Defaults to None.
        processor_kwargs: Keyword arguments for `from_pretrained` of the tokenizer. Defaults to None.
        **kwargs: Other arguments of `SentenceTransformer`: `truncate_dim`, `revision`, `token`, `cache_folder`,
            `local_files_only`, `trust_remote_code`, `similarity_fn_name`, …

    Raises:
        ValueError: As for `PromptEOLTransformer`, or if files are damaged or arguments contradict each other.
        FileNotFoundError: If the folder or repository, or the base of an adapter, does not exist.
        PermissionError: If a repository is gated.
        ConnectionError: If files are not in the cache and cannot be downloaded.

    Example:
        >>> model = PromptEOL("tiny")  # or the name of any other LLM: "facebook/opt-125m"
        >>> model.encode(["A jockey riding a horse.", "It rains."]).shape
        (2, 256)
    """

    default_huggingface_organization = None
    model_card_data_class = PromptEOLModelCardData

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        modules: list[torch.nn.Module] | None = None,
        template: str | PromptTemplate | None = None,
        demonstrations: Sequence[Demonstration] = (),
        layer: int | None = None,
        quantization: Quantization | None = None,
        fast: bool = True,
        max_seq_length: int | None = None,
        device: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        check_whole(max_seq_length=max_seq_length, truncate_dim=kwargs.get("truncate_dim"))
        model_kwargs, processor_kwargs = dict(model_kwargs or {}), dict(processor_kwargs or {})
        model_name_or_path = opened = find_released(model_name_or_path)
        if modules is not None and not isinstance(modules[0], PromptEOLTransformer):
            raise ValueError(f"The first module of a PromptEOL is a PromptEOLTransformer, got {type(modules[0])}.")
        if not model_name_or_path and (modules is None or quantization or device_map):
            raise ValueError("PromptEOL needs a model_name_or_path to open, or modules to assemble.")
        if device is not None and device_map is not None:
            raise ValueError(f"device={device!r} and device_map={device_map!r} exclude each other: pass one.")
        if "meta" in (device, model_kwargs.get("device_map"), _only_device(device_map)):
            raise ValueError(_NO_WEIGHTS)
        if template is not None:
            template = get_template(template)
            if demonstrations:
                template = replace(template, demonstrations=tuple(demonstrations))
        if device is not None:
            _check_device(device)
        if device is None and device_map is None and "device_map" not in model_kwargs:
            device = get_device_name()
        if quantization is not None:
            model_kwargs["quantization_config"] = quantization_config(quantization)
            if device is not None:  # quantized weights are created on their final device
                device, device_map = None, {"": device}
        if device_map is not None:
            model_kwargs["device_map"] = device_map
        # for a base LLM; a saved model states its own dtype
        self._base_dtype = torch.float32 if "cpu" in (device, _only_device(device_map)) else "auto"
        if max_seq_length is not None:
            processor_kwargs["model_max_length"] = max_seq_length
        if model_name_or_path is not None:
            model_name_or_path, file = split_gguf(model_name_or_path)
            if file is not None:
                model_kwargs["gguf_file"] = file

        if kwargs.get("model_card_data") is not None:
            kwargs["model_card_data"] = as_own_data(kwargs["model_card_data"])

        self._transformer_options: dict[str, Any] = {"template": template, "layer": layer, "fast": fast}
        gguf_file = model_kwargs.get("gguf_file")
        with (
            explain_opening(opened),
            explain_gguf(os.path.join(str(model_name_or_path), gguf_file or "")),
            reading_from(model_name_or_path),
        ):
            super().__init__(
                model_name_or_path,
                modules=modules,
                device=device,
                model_kwargs=model_kwargs,
                processor_kwargs=processor_kwargs,
                **kwargs,
            )
        if modules is not None:
            if template is not None:
                self.template = template
            if layer is not None:
                self.layer = layer
            if max_seq_length is not None:
                self.max_seq_length = max_seq_length
            self.fast = self.fast and fast
        if demonstrations and template is None:
            self.template = replace(self.template, demonstrations=tuple(demonstrations))
        others = kwargs.get("truncate_dim"), kwargs.get("prompts")
        if not any((template, demonstrations, layer, quantization, max_seq_length, *others)):
            self.model_card_data.remember_state()

    @property
    def body(self) -> PreTrainedModel:
        """The decoder LLM without its language-model head, as transformers loads it."""
        body: PreTrainedModel = self[0].model
        return body

    @property
    def commit(self) -> str | None:
        """The commit of the repository that the LLM was loaded from; None for a folder."""
        return commit_of(self.body)

    @property
    def template(self) -> PromptTemplate:
        """The prompt template. Assign a `PromptTemplate`, a name or a text to change it."""
        template: PromptTemplate = self[0].template
        return template

    @template.setter
    def template(self, template: str | PromptTemplate) -> None:
        self[0].template = template
        self._warn_if_standardized()

    @property
    def layer(self) -> int:
        """The hidden state to use; -1 is the last one, after the final norm. Assign a number to change it."""
        layer: int = self[0].layer
        return layer

    @layer.setter
    def layer(self, layer: int) -> None:
        self[0].layer = layer
        _fit_poolings(self._modules, self[0].get_embedding_dimension())
        self._warn_if_standardized()

    def view(self, template: str | PromptTemplate | None = None, layer: int | None = None) -> Self:
        """Returns a model that shares the weights, with another template or layer; this model is unchanged.

        Several threads may encode with views of one model. A view has its own tokenizer, template, layer,
        `max_seq_length`, prompts, list of modules and card; `standardize`, `cut` and `save` apply to it alone.
        Weights, their device and dtype, adapters, `fast`, training mode and modules after the pooling are shared: an
        adapter activated in one view is active in all, and training one trains all. Change these while no thread
        encodes.

        Args:
            template: The template of the view: a `PromptTemplate`, the name of one in `TEMPLATES`, or a text with one
                `{sentence}`. Defaults to None: this model's.
            layer: The hidden state that the view uses. Defaults to None: this model's.

        Returns:
            A view whose embeddings `(len(inputs), embedding_dimension)` are those of a model that was loaded with
            these arguments.

        Raises:
            ValueError: If the template does not fit into `max_seq_length` tokens or cannot be built into the
                tokenizer, or if the layer is out of range.

        Example:
            >>> model = PromptEOL("tiny")
            >>> model.view(template="knowledge", layer=-2).encode(["It rains."]).shape
            (1, 256)
            >>> model.layer
            -1
        """
        view = self._snapshot()
        view[0].processor = self.tokenizer.copy()
        view.model_card_data = shallow_copy(self.model_card_data)
        view.model_card_data.model = view
        if template is not None:
            view.template = template
        if layer is not None:
            view.layer = layer
        return view

    def _snapshot(self) -> Self:
        """Returns a copy for which assignments to this model's settings have no effect."""
        twin = shallow_copy(self)
        twin[0] = shallow_copy(self[0])
        return twin

    def standardize(
        self,
        sentences: Sequence[str] | Standardization,
        method: Method = "scale",
        *,
        shrinkage: float = SHRINKAGE,
    ) -> Standardization:
        """Standardizes embeddings by the statistics of sentences; unrelated sentences then have similarities near 0.

        Adds a stock `Dense` module with identity activation at the end, but before a final `Normalize`; a second call
        replaces it. Call it again after a change of template, layer or adapter, because the statistics change with
        them; and in the dtype that the model will be used in, because half precision rounds a dimension whose mean is
        many times its deviation.

        Args:
            sentences: Unlabeled sentences similar to those to embed; a few hundred are enough. Or statistics that are
                already known.
            method: `"center"` subtracts the mean embedding, which carries no meaning
                (https://arxiv.org/abs/2511.11041); `"scale"` also divides each dimension by its standard deviation;
                `"whiten"` also decorrelates the dimensions. Defaults to `"scale"`.
            shrinkage: Only for `"whiten"`: from near 0 (decorrelate fully) to 1 (as `"scale"`). Defaults to 0.9.

        Returns:
            The statistics, for another model with the same weights.

        Raises:
            ValueError: If `sentences` is a string, there are fewer than two distinct sentences, their embeddings are
                equal, the method is unknown, `shrinkage` is out of range, the statistics are of another dimension or
                exceed float16, or the model has no pooling.

        Example:
            >>> model, sentences = PromptEOL("tiny"), ["A jockey riding a horse.", "Rates go up.", "It rains."]
            >>> statistics = model.standardize(sentences)
            >>> model.describe()["behind the pooling"]
            'Dense (standardizes)'
        """
        kept = [(name, module) for name, module in self._modules.items() if name != STANDARDIZATION]
        if not any(isinstance(module, Pooling) for _, module in kept):
            raise ValueError("The model has no pooling, behind which embeddings could be standardized: put one there.")
        place = next(place for place in range(len(kept), 0, -1) if not isinstance(kept[place - 1][1], Normalize))
        before = self.view()
        before.truncate_dim = None
        before._modules = dict(kept[:place])
        if not isinstance(sentences, Standardization):
            embeddings = before.encode(distinct_sentences(sentences))
            sentences = Standardization.fit(embeddings, method, shrinkage, self.dtype)
        if len(sentences.mean) != before.get_embedding_dimension():
            raise ValueError(
                f"Embeddings of this model have {before.get_embedding_dimension()} dimensions, the statistics "
                f"{len(sentences.mean)}: fit them to embeddings of this model."
            )
        dense = sentences.to_dense(self.dtype).to(self.device)
        self._modules: dict[str, Any] = dict([*kept[:place], (STANDARDIZATION, dense), *kept[place:]])
        return sentences

    @property
    def is_standardized(self) -> bool:
        """Whether embeddings are standardized, see `standardize`."""
        return STANDARDIZATION in self._modules

    def _warn_if_standardized(self) -> None:
        if self.is_standardized:
            logger.warning("Embeddings are standardized by statistics of others than these: call standardize() again.")

    @property
    def fast(self) -> bool:
        """Whether the shared prefix is computed once. Assign False for the computation of sentence-transformers."""
        fast: bool = self[0].fast
        return fast

    @fast.setter
    def fast(self, fast: bool) -> None:
        self[0].fast = fast

    @torch.inference_mode()
    @deprecated_kwargs(sentences="inputs")  # type: ignore[untyped-decorator]
    def encode(  # type: ignore[override]
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        **kwargs: Any,
    ) -> Any:
        """Computes sentence embeddings, like `SentenceTransformer.encode`.

        Each distinct sentence is computed once, and unused layers are skipped. Template, layer, `max_seq_length` and
        modules are those at the start of the call.

        Args:
            inputs: The sentence or sentences to embed.
            prompt_name: The name of the prompt in `prompts` to place before each sentence, inside the template.
                Ignored if `prompt` is set. Defaults to None: the default prompt, if there is one.
            prompt: The prompt text to place before each sentence, inside the template. Defaults to None.
            batch_size: The batch size used for the computation. Defaults to 32.
            show_progress_bar: Whether to show a progress bar. Defaults to None: shown if the logger of
                sentence-transformers is at level INFO or DEBUG.
            output_value: The features to return: `"sentence_embedding"`, `"token_embeddings"`, or None for all of
                them. Defaults to `"sentence_embedding"`.
            precision: The precision of the embeddings: `"float32"`, `"int8"`, `"uint8"`, `"binary"` or `"ubinary"`.
                Defaults to `"float32"`.
            **kwargs: Other arguments of `SentenceTransformer.encode`: `convert_to_tensor`, `normalize_embeddings`,
                `truncate_dim`, `device`, `pool`, …

        Returns:
            By default an array `(len(inputs), embedding_dimension)`, or `(embedding_dimension,)` for a single
            sentence; see `SentenceTransformer.encode`.

        Raises:
            ValueError: If an embedding contains NaN or infinity, if `batch_size` or `truncate_dim` is below 1, if
                `output_value` or a device is unknown, or if the model is on the device `meta`, where it has no
                weights.
        """
        check_whole(batch_size=batch_size, truncate_dim=kwargs.get("truncate_dim"))
        if output_value not in ("sentence_embedding", "token_embeddings", None):
            raise ValueError(
                f"output_value={output_value!r} is unknown: choose 'sentence_embedding', 'token_embeddings' or None."
            )
        device = kwargs.get("device")
        for one in device if isinstance(device, list) else [device]:
            if one is not None:
                _check_device(one)
        if self.device.type == "meta":
            raise ValueError(_NO_WEIGHTS)
        if self.training:
            self.eval()
        # a compiled forward pass belongs to this object
        model = self._snapshot() if self._compiled_call_impl is None else self
        only_embeddings = output_value == "sentence_embedding"
        # quantize after the check for finite numbers, because integers would always pass it
        is_quantized = only_embeddings and precision in _QUANTIZED
        options: dict[str, Any] = {
            "prompt_name": prompt_name,
            "prompt": prompt,
            "batch_size": batch_size,
            "show_progress_bar": show_progress_bar,
            "output_value": output_value,
            "precision": "float32" if is_quantized else precision,
            "reading": Reading(last_only=model.fast and only_embeddings and model._reads_last_tokens()),
        }
        encode = partial(super(PromptEOL, model).encode, **{**options, **kwargs})
        is_singular = self.is_singular_input(inputs)
        if is_singular:
            inputs = [inputs]
        sentences = inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)
        if not model.fast or is_singular:
            rows = encode(sentences)
        else:
            if show_progress_bar is None:
                show_progress_bar = _upstream.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
            spread = kwargs.get("pool") is not None or isinstance(kwargs.get("device"), list)
            whole = show_progress_bar or spread or precision != "float32" or not only_embeddings
            rows = encode_distinct(sentences, encode, None if whole else _CHUNK_BATCHES * batch_size)
        check_finite(rows, sentences)
        if is_quantized and len(rows):
            rows = _quantize_like(rows, precision)
        return rows[0] if is_singular else rows

    def _reads_last_tokens(self) -> bool:
        """Whether the modules after the body use only the last token of each sentence."""
        behind = list(self.children())[1:]
        return bool(behind) and type(behind[0]) is LastTokenPooling and all(map(_reads_embedding, behind[1:]))

    def load_adapter(self, peft_model_id: str, adapter_name: str = "default", **kwargs: Any) -> None:
        """Loads an adapter and activates it; all of its tensors must match the model.

        Args:
            peft_model_id: Folder or Hub repository of the adapter.
            adapter_name: The name of the adapter in the model, for `set_adapter`. Defaults to `"default"`.
            **kwargs: Other arguments of `st_prompteol.llm.adapters.load_adapter`.

        Raises:
            ValueError: If the adapter does not fit; the model is then unchanged.
        """
        with explain_opening(peft_model_id):
            load_adapter(self.body, peft_model_id, adapter_name, **kwargs)

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str | None = None) -> None:
        """Adds a new adapter for training and activates it.

        Args:
            adapter_config: The configuration, e.g. from `lora_config`. Layers may be named as in the causal LM.
            adapter_name: The name of the adapter in the model. Defaults to None: `"default"`.

        Raises:
            ValueError: If adapters of this kind cannot be saved for sentence-transformers.
        """
        super().add_adapter(prepare_config(adapter_config, self.body), adapter_name)

    def enable_adapters(self) -> None:
        """Enables all adapters again, after `disable_adapters`."""
        super().enable_adapters()
        for module in self.body.modules():  # transformers disables these but does not enable them again
            if isinstance(module, AuxiliaryTrainingWrapper):
                module.enable_adapters(True)

    @property
    def adapters(self) -> list[str]:
        """The names of all loaded adapters; `active_adapters()` returns those in use."""
        return list(adapters_of(self.body))

    def merge_adapter(self) -> None:
        """Merges the active adapters into the weights and removes all adapters; `save` then saves a full model.

        Raises:
            ValueError: If the model has no adapter, all adapters are disabled, or the weights are quantized.
        """
        merge_adapter(self.body)
        self.body.base_config = None

    def cut(self) -> Cut:
        """Removes the blocks above `layer`, which becomes the last layer, for servers that only use the last layer.

        Embeddings keep their directions, so cosine similarities are unchanged; `Cut.keeps_lengths` says whether norms
        are preserved.

        Raises:
            ValueError: If `layer` already is the last one; if the model has an adapter, is quantized or distributed
                over devices; or if the architecture would change directions. The model is then unchanged.
        """
        body, cut = cut_body(self)
        self[0].put_body(body, self.fast)
        self[0].layer = -1
        return cut

    def describe(self) -> dict[str, str | int | None]:
        """Returns the properties of the model by name, as printed by `st-prompteol info`."""
        transformer, template = self[0], self.template
        return {
            "model": os.path.join(transformer.config.name_or_path, *filter(None, [transformer.gguf_file])),
            "architecture": type(self.body).__name__,
            "adapters": self._describe_adapters(),
            "template": template.head + HOLE + template.tail,
            "preprocessing": template.preprocessing,
            "demonstrations": len(template.demonstrations),
            "template tokens": transformer.count_template_tokens(),
            "max_seq_length": self.max_seq_length,
            "layer": self.layer,
            "dimension": self.get_embedding_dimension(),
            "behind the pooling": self._describe_modules_behind(),
            "parameters": self.body.num_parameters(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantization": transformer.quantization,
            "device": str(self.device),
        }

    def method_name(self) -> str:
        """Returns the name of the model's embedding method in tables, e.g. `PromptEOL + 1 demonstration, layer -2`."""
        shots = len(self.template.demonstrations)
        name = "PromptEOL" if "in one word" in self.template.text else f"template {self.template.text!r}"
        if shots:
            name += f" + {shots} demonstration{'s' * (shots > 1)}"
        if self.adapters:
            name += " + adapter"
        return name if self.layer == -1 else f"{name}, layer {self.layer}"

    def _describe_modules_behind(self) -> str | None:
        names = [
            "Dense (standardizes)" if name == STANDARDIZATION else type(module).__name__
            for name, module in self.named_children()
        ]
        return ", ".join(names[2:]) or None

    def _describe_adapters(self) -> str | None:
        if not self.adapters:
            return None
        active = self.body.active_adapters()
        return ", ".join(f"{name} (active)" if name in active else name for name in self.adapters)

    def save(
        self,
        path: str,
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: list[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Saves the model, or the adapter with tokenizer and template, in sentence-transformers' format.

        The model is written to a staging folder first; its files then replace the existing ones and keep their mode
        and group. If the process is killed while files are moved, loading the folder raises an error that says so, and
        the next `PromptEOL(path)` or `save` completes the move. Unrelated files in the folder are kept. Trainers and
        `push_to_hub` also save with this method.

        Args:
            path: The folder to save to; created if it does not exist.
            model_name: The name of the model in the model card. Defaults to None.
            create_model_card: Whether to write the model card, README.md. A card that was written or edited by others
                is kept. Defaults to True.
            train_datasets: Has no effect, as in sentence-transformers. Defaults to None.
            safe_serialization: Must be True: weights are always saved as safetensors. Defaults to True.

        Raises:
            ValueError: If `safe_serialization` is False, or weights contain NaN or infinity.
            OSError: If the folder cannot be written to; existing files are unchanged.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False would write pickles: PromptEOL saves safetensors only.")
        if path is None:
            return
        check_weights(self)
        card = Path(path, README)
        is_kept = create_model_card and not may_write_card(card)
        with saving_into(path) as folder:
            super().save(str(folder), model_name, create_model_card and not is_kept, train_datasets)
            write_stock_form(folder)
            if is_kept:
                self.model_card_data.check_results(card, folder)

    def _create_model_card(self, path: str, *args: Any, **kwargs: Any) -> None:
        super()._create_model_card(path, *args, **kwargs)
        self.model_card_data.sign(path)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, card: CardOptions | None = None, source: str | None = None, **options: Any
    ) -> PushReport:
        """Pushes the model with `st_prompteol.hub.push_to_hub`, which checks it before and after and writes its card.

        Args:
            repo_id: The repository, `user/name` or `organization/name`; created if it does not exist.
            card: The author's additions to the card. Defaults to None: no additions.
            source: The folder or repository of the model in its current state. Defaults to None: where it was loaded
                from.
            **options: The arguments of `st_prompteol.hub.PushOptions`.

        Returns:
            A report of the push; printed, it is the URL of the commit or pull request.
        """
        from st_prompteol.hub import PushOptions, push_to_hub

        return push_to_hub(self, repo_id, card, PushOptions(**options), source=source)

    def _get_model_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super()._get_model_config()
        return {**config, "requirements": _ADAPTER} if self.adapters else config

    def _load_default_modules(
        self,
        model_name_or_path: str,
        token: bool | str | None,
        cache_folder: str | None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
    ) -> tuple[list[torch.nn.Module], dict[str, Any]]:
        """Creates the modules for a base LLM or an adapter repository that is not in the saved format."""
        hub_kwargs = {
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "local_files_only": local_files_only,
        }
        model_kwargs = dict(model_kwargs or {})
        if not {"dtype", "torch_dtype"} & model_kwargs.keys():
            model_kwargs["dtype"] = self._base_dtype
        transformer = PromptEOLTransformer(
            model_name_or_path,
            model_kwargs={**hub_kwargs, **model_kwargs},
            processor_kwargs={**hub_kwargs, **(processor_kwargs or {})},
            config_kwargs={**hub_kwargs, **(config_kwargs or {})},
            backend=self.backend,
            **self._transformer_options,
        )
        if not local_files_only:
            self.model_card_data.set_base_model(model_name_or_path, revision=revision)
        return [transformer, LastTokenPooling(transformer.get_embedding_dimension())], {}

    def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> type:
        try:
            module_class: Any = super()._load_module_class_from_ref(class_ref, *args, **kwargs)
        except ImportError:
            if not class_ref.startswith("sentence_transformers."):
                raise  # code or a package of the repository itself
            module_class = None
        if not isinstance(module_class, type) or not issubclass(module_class, torch.nn.Module):
            raise ValueError(
                f"The modules.json of {args[0]!r} names {class_ref!r}, which is not a module of "
                "sentence-transformers: mend the file, or save the model again."
            )
        return PromptEOLTransformer if module_class is Transformer else module_class

    def _get_module_init_defaults(self, class_ref: str) -> dict[str, Any]:
        defaults: dict[str, Any] = super()._get_module_init_defaults(class_ref)
        return {**defaults, **self._transformer_options} if class_ref.endswith(".Transformer") else defaults

    def _load_config_modules(
        self, *args: Any, **kwargs: Any
    ) -> tuple[MutableMapping[str, torch.nn.Module], dict[str, Any]]:
        """Loads a saved model, with `LastTokenPooling` in place of upstream's last-token pooling."""
        name = args[0]
        if gguf_file := (kwargs.get("model_kwargs") or {}).get("gguf_file"):
            raise ValueError(
                f"The GGUF file {gguf_file!r} lies in {name!r} beside a saved model, whose tokenizer and modules "
                "would be mixed with it: move it to a folder of its own."
            )
        modules, module_kwargs = super()._load_config_modules(*args, **kwargs)
        first, *behind = modules.values()
        if not isinstance(first, PromptEOLTransformer) or not behind:
            problem = "with another module than a Transformer" if behind else "and ends with its Transformer"
            raise ValueError(
                f"The modules.json of {name!r} begins {problem}, where PromptEOL has a Transformer and a Pooling: "
                "open it with SentenceTransformer, or take the file that belongs to the model."
            )
        _fit_poolings(modules, first.get_embedding_dimension())
        return modules, module_kwargs


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"The device {device!r} is not one of this machine ({problem}): choose cpu, or leave it out for the one "
            "that is here."
        ) from error


def _quantize_like(rows: Any, precision: Any) -> Any:
    """Quantizes embeddings like `SentenceTransformer.encode`, returning the input's type (array, tensor or list)."""
    quantized = quantize_embeddings(rows, precision)
    if isinstance(rows, np.ndarray):
        return quantized
    tensor = torch.from_numpy(quantized)
    return tensor if isinstance(rows, torch.Tensor) else list(tensor)


def _reads_embedding(module: torch.nn.Module) -> bool:
    if type(module) is Dense:
        return bool(module.module_input_name == "sentence_embedding")
    return type(module) in (Normalize, Dropout, LayerNorm)


def _fit_poolings(modules: MutableMapping[str, torch.nn.Module | None], dimension: int) -> None:
    """Recreates the poolings for embeddings of size `dimension`, with `LastTokenPooling` for the last token."""
    for name, module in modules.items():
        if isinstance(module, Pooling) and type(module) in (Pooling, LastTokenPooling):
            ours = LastTokenPooling if module.pooling_mode == "lasttoken" else Pooling
            modules[name] = ours(dimension, module.pooling_mode, module.include_prompt)


def _only_device(device_map: str | dict[str, Any] | None) -> Any:
    return device_map.get("") if isinstance(device_map, dict) else device_map
