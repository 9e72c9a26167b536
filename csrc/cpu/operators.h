// The operators of namespace hyenarec for a program in which no Python defines them, such as one that runs a package of
// torch.export and AOTInductor: torch.ops.load_library, or dlopen, of this library is all it needs. Forward passes alone.
#pragma once

namespace hyenarec::cpu {

// Takes them back: whoever imports this library as a Python module defines them, with gradients and every backend.
void leave_operators_to_python();

}  // namespace hyenarec::cpu
