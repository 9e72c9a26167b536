"""HyenaMixer in models of other libraries: replacements for attention modules, and tools to put them in.

A module that is named after a library imports that library, so import it by name when you need it:
``hyenarec_kernels.integrations.transformers``.
"""

from hyenarec_kernels.integrations.attention import HyenaAttention
from hyenarec_kernels.integrations.swap import check_swap, replace_attention

__all__ = ["HyenaAttention", "check_swap", "replace_attention"]
