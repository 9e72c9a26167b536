"""Emulates PTX, the text that ptxas compiles, on the CPU, and checks every access to memory.

A launch's threads are the lanes of NumPy arrays, several blocks at a time. The checks raise a `Fault` for:

* an access that is misaligned, or outside every tensor that the launch was given;
* a read of shared memory that nothing wrote, or of data that ``cp.async`` copies, before the copy was waited for;
* two warps that access one place of shared memory without a barrier between them, one of them writing;
* two blocks that access one place of global memory in one launch, one of them writing;
* a barrier that not all threads of a block reach; a warp-wide instruction that not all lanes of the warp execute.

They do not see what ptxas does with the text, how long anything takes, nor a race between lanes of one warp, which run
in lockstep here. Only the instructions that this project's kernels use are known; any other one is a `Fault` too.

    parsing        text to a `Program`
    memory         global and shared memory, with their checks
    machine        the emulator: lanes, control flow, barriers
    scalar, bits, transfers, matrices, warpgroups    what the instructions do
    launches       where launches come from: the Triton backend's, and the programs of csrc/cuda
"""
