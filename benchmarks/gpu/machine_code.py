"""What ptxas compiled a kernel to: its machine instructions, and the registers and stack that it uses."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton

TOOLS = Path(triton.__path__[0]) / "backends" / "nvidia" / "bin"  # they come with triton
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?\s*([A-Z][A-Z0-9_.]*)")


def machine_instructions(cubin: bytes) -> Counter[str]:
    """How often each opcode occurs in a binary's code, without the NOPs that fill its end."""
    found = Counter(INSTRUCTION.findall(_told("nvdisasm", "-c", cubin)))
    del found["NOP"]
    return found


def resources(cubin: bytes) -> dict[str, int]:
    """What the one kernel of a binary uses: REG registers and STACK bytes per thread, SHARED bytes, and others."""
    return {name: int(count) for name, count in re.findall(r"(\w+):(\d+)", _told("cuobjdump", "-res-usage", cubin))}


def _told(tool: str, option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(TOOLS / tool), option, file.name], capture_output=True, text=True, check=True)
    return done.stdout
