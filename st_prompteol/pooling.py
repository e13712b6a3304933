"""Last-token pooling."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Pooling


class LastTokenPooling(Pooling):
    """Pools the hidden state of each sentence's last token, like upstream's `Pooling(..., "lasttoken")`, by indexing.

    Args:
        embedding_dimension: The size of a hidden state.
        pooling_mode: Must be `"lasttoken"`, as in a saved configuration. Defaults to `"lasttoken"`.
        include_prompt: Has no effect on the last token; accepted because saved configurations contain it. Defaults to
            True.

    Raises:
        ValueError: If `pooling_mode` is not `"lasttoken"`.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> transformer = PromptEOLTransformer(TINY)
        >>> pooling = LastTokenPooling(transformer.get_embedding_dimension())
        >>> SentenceTransformer(modules=[transformer, pooling]).encode("It rains.").shape
        (256,)
    """

    def __init__(self, embedding_dimension: int, pooling_mode: str = "lasttoken", include_prompt: bool = True) -> None:
        if pooling_mode != "lasttoken":
            raise ValueError(
                f"LastTokenPooling cannot pool by {pooling_mode!r}: use sentence-transformers' Pooling for that."
            )
        super().__init__(embedding_dimension, pooling_mode=pooling_mode, include_prompt=include_prompt)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding` `(batch_size, hidden_size)` to the features."""
        if "cu_seq_lens_q" in features:  # a packed batch, without padding
            return super().forward(features, **kwargs)  # type: ignore[no-any-return]
        token_embeddings, mask = features["token_embeddings"], features["attention_mask"]
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * positions).argmax(dim=1)  # (batch_size,), for padding on either side
        rows = torch.arange(mask.shape[0], device=token_embeddings.device)
        features["sentence_embedding"] = token_embeddings[rows, last.to(token_embeddings.device)]
        return features
