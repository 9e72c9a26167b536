"""The suite that needs a GPU, its parts, and what is compiled ahead of time for one."""
