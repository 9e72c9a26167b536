"""A decoder for Hugging Face transformers: Llama's, with :class:`hyenarec_kernels.nn.HyenaMixer` in place of attention.

Importing this module registers the model type ``hyena`` with ``AutoConfig``, ``AutoModel`` and
``AutoModelForCausalLM``. Written for transformers 5.24.
"""

from typing import Any  # without postponed annotations: transformers reads `config: HyenaConfig`

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
)
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING, Cache, CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.utils.output_capturing import capture_outputs

from hyenarec_kernels.nn import Filter, HyenaMixer, StreamingState, key_mask


@strict
class HyenaConfig(LlamaConfig):
    """``LlamaConfig`` and the mixer's options.

    ``horizon`` is K, how many events back the filters reach; ``mixer_options`` are further arguments of
    :class:`hyenarec_kernels.nn.HyenaMixer`. ``attention_dropout`` is the dropout probability of the mixers' outputs.
    The options for heads and rotary positions are not read: a convolution has neither.
    """

    model_type = "hyena"
    base_model_tp_plan = None  # Llama's plan names projections of attention

    num_attention_heads: int = 1
    horizon: int = 1024
    mixer_options: dict[str, Any] | None = None

    @property
    def layer_types(self) -> list[str]:
        """The names by which transformers chooses the classes of a cache's layers."""
        return [HyenaCacheLayer._layer_type] * self.num_hidden_layers

    def validate_layer_type(self) -> None:
        """Does nothing: the library's own check knows only its own types."""


class HyenaCacheLayer(CacheLayerMixin):
    """One mixer's streaming state, in a ``DynamicCache`` or ``StaticCache`` that is made with a `HyenaConfig`.

    Its size depends on the horizon, not on how much it has read. It can be reordered for beam search, but not cropped,
    so assisted decoding is refused.
    """

    _layer_type = "hyena"
    supports_early_init = False

    def __init__(self, **_: Any) -> None:  # a static cache passes its size
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.state: StreamingState | None = None
        self.length = 0

    def update(self, x: Tensor, mask: Tensor | None, mixer: HyenaMixer) -> Tensor:
        """The outputs at new events ``x`` (B, L, D), which the state then includes. ``mask`` (B, L) is read only for
        the first events."""
        self.length += x.shape[1]
        if self.state is None:
            y, self.state = mixer.prefill(x, mask=mask)
            return y
        outputs = []
        for event in x.unbind(1):
            y, self.state = mixer.step(event, self.state)
            outputs.append(y)
        return torch.stack(outputs, 1)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.state is not None:
            self.state = self.state.index(indices.to(self.state.steps.device))

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            self.batch_select_indices(torch.arange(len(self.state.steps)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise NotImplementedError("HyenaCacheLayer: a streaming state cannot forget its last events")

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def lazy_initialization(self, *_: Any) -> None:
        """Does nothing: the first :meth:`update` makes the state."""


STATIC_LAYER_TYPE_MAPPING[HyenaCacheLayer._layer_type] = HyenaCacheLayer  # its size is static, too


class HyenaLlamaAttention(nn.Module):
    """Replaces ``LlamaAttention``."""

    def __init__(self, config: HyenaConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.mixer = HyenaMixer(config.hidden_size, config.horizon, **(config.mixer_options or {}))
        self.dropout = nn.Dropout(config.attention_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        cu_seq_lens_q: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        if cu_seq_lens_q is not None:
            y = self.mixer(hidden_states.flatten(0, 1), cu_seqlens=cu_seq_lens_q).view_as(hidden_states)
        elif cache is not None:
            y = cache.layers[self.layer_idx].update(hidden_states, attention_mask, self.mixer)
        else:
            y = self.mixer(hidden_states, mask=attention_mask)
        return self.dropout(y), None


class HyenaPreTrainedModel(LlamaPreTrainedModel):
    config: HyenaConfig
    _supports_flash_attn = _supports_flex_attn = _can_compile_fullgraph = _supports_attention_backend = False
    _can_record_outputs = {"hidden_states": LlamaDecoderLayer}  # noqa: RUF012, as the library has it

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, HyenaMixer | Filter):  # a checkpoint may lack tensors of a mixer's filters alone
            super()._init_weights(module)
            return
        tensors = module.state_dict(keep_vars=True).items()
        loaded = {name: t.detach().clone() for name, t in tensors if getattr(t, "_is_hf_initialized", False)}
        module.reset_parameters()
        module.load_state_dict(loaded, strict=False)


class HyenaModel(HyenaPreTrainedModel, LlamaModel):
    """``LlamaModel`` with mixers, and without attention, positions and (L, L) masks."""

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__(config)
        del self.rotary_emb
        for i, layer in enumerate(self.layers):
            layer.self_attn = HyenaLlamaAttention(config, i)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As ``LlamaModel.forward``.

        Packed sequences are marked by ``cu_seq_lens_q``, or by ``position_ids`` that restart where a sequence starts,
        if there is neither ``attention_mask`` nor ``cache``. Otherwise positions are not read.

        Raises:
            ValueError: there are packed sequences together with a cache, a cache that was made for attention, padding
                after the events of a cache, an ``attention_mask`` (B, 1, L, L) that lets events see later ones (or,
                with bidirectional mixers, hides them), or ``output_attentions``.
        """
        if kwargs.get("output_attentions"):
            raise ValueError("HyenaModel: a convolution has no attention weights; leave output_attentions out")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("HyenaModel: give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, L, D)
        if cu_seq_lens_q is None and position_ids is not None and attention_mask is None and cache is None:
            cu_seq_lens_q = _cu_seqlens(position_ids.expand(x.shape[:2]))
        if cu_seq_lens_q is not None and (cache is not None or use_cache):
            raise ValueError("HyenaModel: packed sequences are mixed without a cache; pass use_cache=False")
        both_ways = bool((self.config.mixer_options or {}).get("bidirectional"))
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not both_ways
        if use_cache and cache is None and cu_seq_lens_q is None:
            cache = DynamicCache(config=self.config)
        mask = None if attention_mask is None else key_mask(attention_mask, causal=not both_ways)
        if cache is not None:
            mask = _check_cache(cache, mask, x, len(self.layers))
        for layer in self.layers:
            x = layer(x, attention_mask=mask, cache=cache, cu_seq_lens_q=cu_seq_lens_q, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), cache=cache)


class HyenaForCausalLM(HyenaPreTrainedModel, LlamaForCausalLM):
    """``LlamaForCausalLM`` on `HyenaModel`: with labels, ``generate``, ``save_pretrained`` and ``from_pretrained``."""

    def __init__(self, config: HyenaConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = HyenaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def _cu_seqlens(positions: Tensor) -> Tensor | None:
    """Where the sequences in ``positions`` (B, L) start in the flattened batch, and where the last ends; None if each
    row is one sequence."""
    fresh = torch.ones_like(positions, dtype=torch.bool)
    fresh[:, 1:] = positions.diff() != 1
    if not fresh[:, 1:].any():
        return None
    end = torch.tensor([fresh.numel()], device=fresh.device)
    return torch.cat([fresh.flatten().nonzero()[:, 0], end])


def _check_cache(cache: Cache, mask: Tensor | None, x: Tensor, layers: int) -> Tensor | None:
    """The mask for the mixers: ``mask`` if the cache is empty, otherwise None. Raises ValueError if the cache is not
    for mixers or ``mask`` marks padding in ``x`` (B, L, D) after cached events."""
    if len(cache.layers) != layers or not all(isinstance(layer, HyenaCacheLayer) for layer in cache.layers):
        raise ValueError(f"HyenaModel: cache must be made as DynamicCache(config=model.config), got {cache}")
    if not cache.get_seq_length():
        return mask
    if mask is not None and not mask[:, -x.shape[1] :].all():
        raise ValueError("HyenaModel: events after those of a cache must not be padding, but attention_mask has a 0")
    return None


AutoConfig.register(HyenaConfig.model_type, HyenaConfig)
AutoModel.register(HyenaConfig, HyenaModel)
AutoModelForCausalLM.register(HyenaConfig, HyenaForCausalLM)
