"""A model of kablate as transformers loads it, through trust_remote_code.

`make export` copies this file into the folder of a model, together with the sources
of the model (gpt2/infer/flat_code.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from gpt2.infer.plain_settings import Settings
from gpt2.model.context import DecodeCache
from gpt2.model.gpt import GPT

MODEL_TYPE = "kablate"


class KablateConfig(PretrainedConfig):
    """``settings`` that the model reads, by part; ``heads`` left in each layer, None
    if none were removed."""

    model_type = MODEL_TYPE
    attribute_map = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        heads: list[int] | None = None,
        n_embd: int = 0,
        n_layer: int = 0,
        n_head: int = 0,
        n_positions: int = 0,
        vocab_size: int = 0,
        **others: Any,
    ) -> None:
        self.settings, self.heads = settings, heads
        self.n_embd, self.n_layer, self.n_head = n_embd, n_layer, n_head
        self.n_positions, self.vocab_size = n_positions, vocab_size
        super().__init__(**others)


def settings_of(config: KablateConfig) -> Settings:
    """The settings in a configuration, by which the model is built."""
    assert config.settings is not None, "a configuration without settings"
    return Settings(config.settings, config.vocab_size)


class KablateCache:
    """Caches of the layers between tokens, passed on by generate()."""

    is_compileable = False

    def __init__(self, decode: DecodeCache) -> None:
        self.decode = decode

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that went through the model so far."""
        return self.decode.position

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the sequences with which a beam search continues."""
        for layer in self.decode.layers:
            for tensors in (layer.timed, layer.states):
                for name, tensor in tensors.items():
                    tensors[name] = tensor.index_select(0, beam_idx)


class KablateForCausalLM(PreTrainedModel, GenerationMixin):
    """GPT-2 with the mechanisms of its settings, under a tied head."""

    config_class = KablateConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False  # for Trainer: the loss is a mean over the batch given

    def __init__(self, config: KablateConfig) -> None:
        super().__init__(config)
        self.model = GPT(settings_of(config), config.heads)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # mechanisms keep more than keys and values

    def _init_weights(self, module: nn.Module) -> None:
        """Buffers that are not weights: transformers loses them while loading."""
        lost = dict(module.named_buffers(recurse=False))
        names = {id(part): name for name, part in self.model.named_modules()}
        if not lost or id(module) not in names:
            return
        with torch.device("cpu"):
            made = GPT(settings_of(self.config), self.config.heads)
        fresh = dict(made.get_submodule(names[id(module)]).named_buffers(recurse=False))
        for name in lost.keys() & module._non_persistent_buffers_set:
            lost[name].copy_(fresh[name])

    def get_input_embeddings(self) -> nn.Module:
        return self.model.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.wte = value

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: KablateCache | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,  # generate() looks for this name
    ) -> dict[str, Any]:
        """The tokens that are not in the cache, and the cache."""
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "input_ids": input_ids[:, seen:],
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
        }

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: KablateCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, S, V] of tokens [B, S]; with labels [B, S] (-100: not scored) also
        the mean loss in nats of each from those before it.

        Raises ValueError for padding, for tokens beyond the context, and for arguments
        that this model does not know.
        """
        self._check(input_ids, attention_mask, past_key_values, others)
        if use_cache and past_key_values is None and not self.training:
            past_key_values = KablateCache(self.model.new_cache())
        if past_key_values is None:
            logits = self.model.logits(input_ids)
        else:
            logits = self.model.decode(input_ids, past_key_values.decode)
        loss = None
        if labels is not None:
            rows, goals = logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
            loss = F.cross_entropy(rows, goals)
        out = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=past_key_values
        )
        return out.to_tuple() if return_dict is False else out

    def _check(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        past: KablateCache | None,
        others: dict[str, Any],
    ) -> None:
        seen = 0 if past is None else past.get_seq_length()
        length = seen + input_ids.shape[1]
        if length > self.config.n_positions:
            raise ValueError(
                f"{length} tokens do not fit the context of {self.config.n_positions}"
            )
        if attention_mask is not None and not bool(attention_mask.bool().all()):
            raise ValueError(
                "padded batches are not supported: give sequences of one length"
            )
        asked = sorted(k for k, v in others.items() if v is not None and v is not False)
        if asked:
            raise ValueError(f"this model does not support {', '.join(asked)}")


__all__ = ["KablateConfig", "KablateForCausalLM"]
