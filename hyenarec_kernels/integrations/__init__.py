"""HyenaMixer in other people's models: stand-ins for attention, and tools to exchange it.

Modules named after a library import it, and are imported by name: ``hyenarec_kernels.integrations.transformers``.
"""

from hyenarec_kernels.integrations.attention import HyenaAttention
from hyenarec_kernels.integrations.swap import check_swap, replace_attention

__all__ = ["HyenaAttention", "check_swap", "replace_attention"]
