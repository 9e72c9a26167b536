"""Runs PTX, the text that ptxas gets, on the CPU, and checks every access that it makes to memory.

A launch's threads are the lanes of NumPy arrays, several blocks at a time. What the checks see is a `Fault`:

* an access that is misaligned, or outside every tensor that the launch was given;
* a read of shared memory that nothing wrote, and of data that ``cp.async`` brought before it was waited for;
* two warps on one place of shared memory without a barrier between them, one of them writing;
* two blocks on one place of global memory in one launch, one of them writing;
* a barrier that not all threads of a block reach; a warp's instruction that not all its lanes execute.

It does not see what ptxas does with the text, how long anything takes, nor a race between lanes of one warp, which run
in step here. It knows the instructions that this project's kernels use; any other one is a `Fault` too.

    parsing        text to a `Program`
    memory         global and shared memory, with their checks
    machine        lanes, control flow, barriers
    scalar, bits, transfers, matrices, warpgroups    what the instructions do
    launches       where launches come from: the Triton backend's, and the programs of csrc/cuda
"""
