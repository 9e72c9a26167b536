"""The machine that runs PTX (:mod:`benchmarks.gpu.ptx`): what its instructions compute, and which faults it reports."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.gpu.ptx.faults import Fault
from benchmarks.gpu.ptx.launches import Launch, programs
from benchmarks.gpu.ptx.memory import GlobalMemory

HEAD = """
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 shared[];
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u32 kernel_param_1
)
.reqntid THREADS
{
	.reg .pred %p<9>;
	.reg .b16 %rs<9>;
	.reg .b32 %r<99>;
	.reg .b64 %rd<9>;
	ld.param.b64 %rd1, [kernel_param_0];
	ld.param.b32 %r1, [kernel_param_1];
	mov.u32 %r2, %tid.x;
	mov.u32 %r3, %ctaid.x;
	mad.wide.u32 %rd2, %r2, 4, %rd1;
	shl.b32 %r4, %r2, 2;
	mov.b32 %r5, shared;
	add.s32 %r6, %r5, %r4;
"""


def run(
    body: str, data: npt.NDArray[np.uint32], *, number: int = 0, threads: int = 64, blocks: int = 1, shared: int = 1024
) -> npt.NDArray[np.uint32]:
    """Runs a body with %rd1 the data, %r1 a number, %rd2 the thread's own word, %r6 its word of shared memory."""
    (program,) = programs(HEAD.replace("THREADS", str(threads)) + body + "\n\tret;\n}\n")
    memory = GlobalMemory()
    memory.add(data.ctypes.data, data.nbytes, "data")
    Launch(program, (blocks, 1, 1), threads, shared, (data.ctypes.data, number)).run(memory)
    return data


def words(count: int) -> npt.NDArray[np.uint32]:
    return np.arange(count, dtype=np.uint32)


def test_arithmetic_and_a_loop() -> None:
    """Each thread adds 1, 2, ... up to its own number, so that lanes leave the loop one after the other."""
    body = """
	mov.b32 %r7, 0;
	mov.b32 %r8, 0;
$again:
	setp.ge.u32 %p1, %r8, %r2;
	@%p1 bra $done;
	add.s32 %r8, %r8, 1;
	add.s32 %r7, %r7, %r8;
	bra.uni $again;
$done:
	st.global.b32 [%rd2], %r7;
"""
    assert run(body, words(64)).tolist() == [n * (n + 1) // 2 for n in range(64)]


def binary(opcode: str, a: int, b: int) -> int:
    kind = opcode.rsplit(".", 1)[1]
    body = f"mov.b32 %r10, {a:#x}; mov.b32 %r11, {b:#x}; {opcode} %r12, %r10, %r11; st.global.b32 [%rd2], %r12;"
    assert kind
    return int(run(body, words(64))[0])


def bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


@pytest.mark.parametrize(
    ("opcode", "a", "b", "want"),
    [
        ("add.s32", 0xFFFFFFFF, 3, 2),
        ("mul.lo.s32", 0x10001, 0x10001, 0x20001),
        ("mul.hi.u32", 0x80000000, 6, 3),
        ("div.s32", (-7) % 2**32, 2, (-3) % 2**32),
        ("rem.s32", (-7) % 2**32, 2, (-1) % 2**32),
        ("shr.s32", 0x80000000, 40, 0xFFFFFFFF),
        ("shl.b32", 1, 32, 0),
        ("min.s32", 0xFFFFFFFF, 1, 0xFFFFFFFF),
        ("max.f32", bits(1.0), 0x7FC00000, bits(1.0)),
        ("div.rn.f32", bits(1.0), bits(3.0), bits(1 / 3)),
        ("mul.bf16x2", 0x3F804000, 0x40004040, 0x400040C0),
    ],
)
def test_instructions(opcode: str, a: int, b: int, want: int) -> None:
    assert binary(opcode, a, b) == want


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("cvt.rn.bf16x2.f32 %r10, 0f3F800000, 0f40000000;", 0x3F804000),
        ("cvt.rna.tf32.f32 %r10, 0f3F801000;", 0x3F802000),
        ("mov.b32 %r11, 0x80; cvt.s32.s8 %r10, %r11;", 0xFFFFFF80),
        ("cvt.rzi.s32.f32 %r10, 0fC0200000;", 0xFFFFFFFE),
        ("cvt.sat.f32.f32 %r10, 0fC0200000;", 0),
        ("fma.rn.sat.f32 %r10, 0f40000000, 0f40000000, 0f3F800000;", bits(1.0)),
        ("mov.b32 %r11, 0x12345678; prmt.b32 %r10, %r11, 0, 0x0123;", 0x78563412),
        ("mov.b32 %r11, 0xF0; bfe.s32 %r10, %r11, 4, 4;", 0xFFFFFFFF),
        ("mov.b32 %r11, 0xF0; bfe.u32 %r10, %r11, 4, 4;", 0xF),
        ("mov.b32 %r11, 0xCC; lop3.b32 %r10, %r11, 0xAA, 0xF0, 0x96;", 0xCC ^ 0xAA ^ 0xF0),
        ("mov.b32 %r11, 3; mov.b32 %r12, 0x80000000; shf.l.wrap.b32 %r10, %r12, %r11, 1;", 7),
        ("mov.b32 {%rs1, %rs2}, 0x00020001; mov.b32 %r10, {%rs2, %rs1};", 0x00010002),
        ("selp.b32 %r10, 5, 6, %p1;", 6),
        ("setp.lt.s32 %p1, %r1, 1; selp.b32 %r10, 5, 6, %p1;", 5),
        ("mov.b32 %r11, 0x7FC00000; setp.neu.f32 %p1, %r11, %r11; selp.b32 %r10, 1, 0, %p1;", 1),
    ],
)
def test_other_instructions(body: str, want: int) -> None:
    assert run(body + " st.global.b32 [%rd2], %r10;", words(64))[0] == want


def test_shuffles() -> None:
    body = """
	shfl.sync.bfly.b32 %r7, %r2, 16, 31, -1;
	shfl.sync.up.b32 %r8, %r2, 1, 0, -1;
	shl.b32 %r8, %r8, 8;
	or.b32 %r7, %r7, %r8;
	st.global.b32 [%rd2], %r7;
"""
    lane = np.arange(64)
    want = (lane ^ 16) | np.where(lane % 32 == 0, lane, lane - 1) << 8
    assert run(body, words(64)).tolist() == want.tolist()


@pytest.mark.parametrize("kind", ["bf16", "tf32"])
def test_matrix_product(kind: str) -> None:
    """With entries placed as in the manual's tables, the result is NumPy's product."""
    rng = np.random.default_rng(0)
    depth = 16 if kind == "bf16" else 8
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((16, depth), (depth, 8)))
    data = np.zeros((6, 32), np.uint32)  # the registers of A and B
    for lane in range(32):
        g, t = divmod(lane, 4)

        def pair(x: np.float32, y: np.float32) -> int:
            return int(x.view(np.uint32)) >> 16 | int(y.view(np.uint32)) & 0xFFFF0000

        if kind == "bf16":
            for i, (r, c) in enumerate([(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)]):
                data[i, lane] = pair(a[r, c], a[r, c + 1])
            for i, r in enumerate([2 * t, 2 * t + 8]):
                data[4 + i, lane] = pair(b[r, g], b[r + 1, g])
        else:
            for i, (r, c) in enumerate([(g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)]):
                data[i, lane] = a[r, c].view(np.uint32)
            for i, r in enumerate([t, t + 4]):
                data[4 + i, lane] = b[r, g].view(np.uint32)
    loads = "\n".join(f"ld.global.b32 %r{20 + i}, [%rd2+{128 * i}];" for i in range(6))
    stores = "\n".join(f"st.global.b32 [%rd2+{128 * i}], %r{30 + i};" for i in range(4))
    shape = f"m16n8k{depth}.row.col.f32.{kind}.{kind}.f32"
    operands = "{%r20, %r21, %r22, %r23}, {%r24, %r25}, {%r40, %r41, %r42, %r43}"
    body = f"{loads}\nmma.sync.aligned.{shape} {{%r30, %r31, %r32, %r33}}, {operands};\n{stores}"
    found = run(body, data, threads=32).view(np.float32)
    product = a @ b
    for lane in range(32):
        g, t = divmod(lane, 4)
        want = [product[g, 2 * t], product[g, 2 * t + 1], product[g + 8, 2 * t], product[g + 8, 2 * t + 1]]
        assert found[:4, lane].tolist() == want


def test_matrices_from_shared_memory() -> None:
    """`ldmatrix` and its transposed form load 8 rows of 8 16-bit values."""
    body = """
	cvt.u16.u32 %rs1, %r2;
	shl.b32 %r7, %r2, 1;
	add.s32 %r7, %r5, %r7;
	st.shared.b16 [%r7], %rs1;
	add.s16 %rs1, %rs1, 32;
	st.shared.b16 [%r7+64], %rs1;
	bar.warp.sync -1;
	and.b32 %r8, %r2, 7;
	shl.b32 %r8, %r8, 4;
	add.s32 %r8, %r5, %r8;
	ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r8];
	ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r10}, [%r8];
	st.global.b32 [%rd2], %r9;
	st.global.b32 [%rd2+128], %r10;
"""
    plain, transposed = run(body, words(64), threads=32).reshape(2, 32)
    matrix = np.arange(64).reshape(8, 8)
    for lane in range(32):
        g, t = divmod(lane, 4)
        assert plain[lane] == matrix[g, 2 * t] | matrix[g, 2 * t + 1] << 16
        assert transposed[lane] == matrix[2 * t, g] | matrix[2 * t + 1, g] << 16


def in_rows(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """The words of shared memory that hold a (rows, 16) matrix of bfloat16 in swizzled rows of 32 bytes: of every 8
    rows, the first four hold their two halves in order, the last four exchanged."""
    words = (matrix.view(np.uint32) >> 16).astype(np.uint16).reshape(-1, 2, 8)
    for row in range(len(words)):
        if row % 8 >= 4:
            words[row] = words[row, ::-1]
    return np.ascontiguousarray(words).view(np.uint32).reshape(-1)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("waited", [False, True])
def test_product_of_four_warps(transposed: bool, waited: bool) -> None:
    """`wgmma` takes A from registers and B from shared memory, and keeps the old sums in its registers until the
    wait."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((64, 16), (16, 16)))
    data = np.zeros((13, 128), np.uint32)  # the registers of A, B, and the sums
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        g, t = divmod(lane, 4)
        for i, (r, c) in enumerate([(g, 2 * t), (g + 8, 2 * t), (g, 2 * t + 8), (g + 8, 2 * t + 8)]):
            low, high = a[16 * warp + r, c : c + 2].view(np.uint32)
            data[i, thread] = low >> 16 | high & 0xFFFF0000
    data[4] = in_rows(np.ascontiguousarray(b if transposed else b.T))
    loads = "\n".join(f"ld.global.b32 %r{20 + i}, [%rd2+{512 * i}];" for i in range(5))
    stores = "\n".join(f"st.global.b32 [%rd2+{512 * (5 + i)}], %r{30 + i};" for i in range(8))
    sums = "{" + ", ".join(f"%r{30 + i}" for i in range(8)) + "}"
    descriptor = 3 << 62 | (256 >> 4) << 32 | 4 << 16  # rows of 32 bytes, groups of eight rows 256 bytes apart
    body = f"""
{loads}
st.shared.b32 [%r6], %r24;
bar.sync 0;
mov.b64 %rd3, {descriptor:#x};
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {sums}, {{%r20, %r21, %r22, %r23}}, %rd3, 0, 1, 1, {transposed:d};
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned {0 if waited else 1};
{stores}
"""
    found = run(body, data, threads=128, shared=512).view(np.float32)[5:]
    product = a @ b if waited else np.zeros((64, 16), np.float32)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        g, t = divmod(lane, 4)
        want = [product[16 * warp + g + 8 * (i % 4 // 2), 8 * (i // 4) + 2 * t + i % 2] for i in range(8)]
        assert found[:, thread].tolist() == want


COPY = "cp.async.cg.shared.global [%r7], [%rd3], 16; cp.async.commit_group;"
ADDRESSES = "shl.b32 %r7, %r2, 4; mad.wide.u32 %rd3, %r2, 16, %rd1; add.s32 %r7, %r5, %r7;"
FAULTS = {
    "outside": ("ld.global.b32 %r7, [%rd2+4];", "outside every tensor"),
    "before": ("ld.global.b32 %r7, [%rd1+-4];", "outside every tensor"),
    "misaligned": ("ld.global.v2.b32 {%r7, %r8}, [%rd1+4];", "misaligned"),
    "misaligned in shared memory": ("st.shared.b64 [%r5+4], %rd1;", "misaligned"),
    "outside shared memory": ("st.shared.b32 [%r6+1024], %r2;", "shared memory at"),
    "unwritten shared memory": ("ld.shared.b32 %r7, [%r6];", "nothing wrote"),
    "read after write": ("st.shared.b32 [%r6], %r2; xor.b32 %r7, %r6, 128; ld.shared.b32 %r8, [%r7];", "owner 1 wrote"),
    "write after read": (
        "st.shared.b32 [%r6], %r2; bar.sync 0; ld.shared.b32 %r8, [%r6]; xor.b32 %r7, %r6, 128;st.shared.b32 [%r7], 5;",
        "read, with no barrier",
    ),
    "write after write": (
        "setp.lt.u32 %p1, %r2, 32; @%p1 st.shared.b32 [%r6], 1; @!%p1 st.shared.b32 [%r6+-128], 2;",
        "wrote, with no barrier",
    ),
    "two values at once": ("st.shared.b32 [%r5], %r2;", "different values"),
    "two blocks": (
        "setp.eq.u32 %p1, %r3, 0; @%p1 st.global.b32 [%rd2], 7; @!%p1 ld.global.b32 %r7, [%rd2];",
        "owner 0",
    ),
    "a copy that was not waited for": (f"{ADDRESSES} {COPY} bar.sync 0; ld.shared.b32 %r8, [%r7];", "nothing wrote"),
    "barriers in branches": (
        "setp.lt.u32 %p1, %r2, 32; @%p1 bra $other; bar.sync 0; bra.uni $done; $other: bar.sync 0; $done:",
        "different barriers",
    ),
    "half a warp": ("setp.lt.u32 %p1, %r2, 16; @%p1 shfl.sync.bfly.b32 %r7, %r2, 1, 31, -1;", "member mask"),
    "division by zero": ("div.u32 %r7, %r2, %r1;", "division by zero"),
    "an unknown instruction": ("tcgen05.fence::before_thread_sync;", "does not know"),
    "local memory": ("ld.local.b32 %r7, [%r6];", "stack frame"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_seen(name: str) -> None:
    body, message = FAULTS[name]
    with pytest.raises(Fault, match=message):
        run(body, words(256 if "copy" in name else 64), blocks=2 if name == "two blocks" else 1)


@pytest.mark.parametrize(
    "body",
    [
        "st.shared.b32 [%r6], %r2; bar.sync 0; xor.b32 %r7, %r6, 128; ld.shared.b32 %r8, [%r7];",
        "st.shared.b32 [%r5], 5;",  # all threads write the same value
        "mov.b32 %r7, -8; add.s32 %r7, %r6, %r7; st.shared.b32 [%r7+16], 5;",  # the offset wraps around
        f"{ADDRESSES} {COPY} cp.async.wait_group 0; bar.sync 0; ld.shared.b32 %r8, [%r7];",
        "setp.lt.u32 %p1, %r2, 32; @%p1 bra $done; bar.sync 0; $done:",  # ended threads need no barrier
        "ld.global.b32 %r7, [%rd2]; st.global.b32 [%rd2], %r7;",
    ],
)
def test_what_is_right_is_no_fault(body: str) -> None:
    run(body, words(256))


def test_what_is_counted() -> None:
    """Lines and sectors of global memory are counted, and banks of shared memory; parameters have their own cache."""
    body = """
	ld.param.b32 %r7, [kernel_param_1];
	mov.b64 %rd3, kernel_param_1;
	ld.param.b32 %r8, [%rd3];
	shl.b32 %r9, %r4, 1;
	add.s32 %r10, %r5, %r9;
	st.shared.b32 [%r10], %r8;
	st.global.b32 [%rd2], %r8;
"""
    (program,) = programs(HEAD.replace("THREADS", "64") + body + "\n\tret;\n}\n")
    data, memory = words(96), GlobalMemory()
    memory.add(data.ctypes.data, data.nbytes, "data")
    launch = Launch(program, (1, 1, 1), 64, 1024, (data.ctypes.data, 7))
    first, second = (launch.sample(memory, np.zeros(1, np.int64)) for _ in range(2))
    assert first.wavefronts == {"global": 2, "shared": 4}  # two warps: one line each; every other bank, so twice
    assert len(first.sectors) == 8 and np.array_equal(first.sectors, second.sectors)
    assert [buffer.name for buffer in memory.buffers if buffer.number == first.sectors[0] * 32 // memory.WINDOW] == [
        "data"
    ]
