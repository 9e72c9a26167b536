"""HyenaMHA, the replacement for FlashAttention's module."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyenarec_kernels.integrations import replace_attention
from hyenarec_kernels.integrations.flash import HyenaMHA

D, K, LENGTHS = 8, 6, [9, 4, 1]
REAL = torch.arange(9) < torch.tensor(LENGTHS)[:, None]  # (B, L), True at real positions, as FlashAttention has it
CU_SEQLENS = torch.tensor([0, 9, 13, 14], dtype=torch.int32)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_is_padded(bidirectional: bool) -> None:
    torch.manual_seed(0)
    attention, x = HyenaMHA(D, K, bidirectional=bidirectional), torch.randn(3, 9, D)
    padded, packed = (x.clone().requires_grad_() for _ in range(2))
    y = attention(padded, key_padding_mask=REAL)[REAL]
    z = attention(packed[REAL], cu_seqlens=CU_SEQLENS, max_seqlen=9)
    torch.testing.assert_close(z, y)
    rows = [attention(x[row : row + 1, :length])[0] for row, length in enumerate(LENGTHS)]
    torch.testing.assert_close(z, torch.cat(rows))
    y.square().sum().backward()
    z.square().sum().backward()
    torch.testing.assert_close(packed.grad, padded.grad)


class MHA(nn.Module):
    """Has what HyenaMHA reads of ``flash_attn.modules.mha.MHA``; the real package needs a GPU to install."""

    def __init__(self, causal: bool = True, cross_attn: bool = False, return_residual: bool = False) -> None:
        super().__init__()
        self.embed_dim, self.causal, self.cross_attn, self.return_residual = D, causal, cross_attn, return_residual
        self.inner_attn = SimpleNamespace(drop=nn.Dropout(0.3))
        self.out_proj = nn.Linear(D, D, dtype=torch.bfloat16)


def test_it_takes_over_what_attention_had() -> None:
    model = nn.ModuleList([MHA(), MHA(causal=False, return_residual=True)]).eval()
    assert replace_attention(model, K, {MHA: HyenaMHA.like}) == {"0": "MHA -> HyenaMHA", "1": "MHA -> HyenaMHA"}
    assert [m.mixer.bidirectional for m in model] == [False, True]
    assert all(m.dropout.p == 0.3 and not m.training and m.mixer.skip.dtype == torch.bfloat16 for m in model)
    x = torch.randn(2, 5, D, dtype=torch.bfloat16)
    y, residual = model[1](x)
    assert residual is x and isinstance(model[0](x), Tensor) and torch.equal(y, model[1].mixer(x))
    with pytest.raises(ValueError, match="cannot stand for cross-attention"):
        HyenaMHA.like(MHA(cross_attn=True), K)


@pytest.mark.parametrize("argument", ["x_kv", "mixer_subset", "inference_params"])
def test_what_it_cannot_honour_is_refused(argument: str) -> None:
    call: dict[str, Any] = {argument: torch.randn(2, 5, D)}
    with pytest.raises(ValueError, match=f"^HyenaMHA: {argument} must be None"):
        HyenaMHA(D, K)(torch.randn(2, 5, D), **call)
    with pytest.raises(ValueError, match="cu_seqlens"):
        HyenaMHA(D, K)(torch.randn(14, D), key_padding_mask=REAL, cu_seqlens=CU_SEQLENS)
