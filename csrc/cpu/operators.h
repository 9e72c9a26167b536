// The operators of namespace hyenarec for programs in which no Python defines them, such as one that runs a package of
// torch.export and AOTInductor. All that they need is to load this library, with torch.ops.load_library or dlopen.
// Forward only.
#pragma once

namespace hyenarec::cpu {

// Removes these operators, because this library was imported as a Python module: Python then defines them, with
// gradients and every backend.
void leave_operators_to_python();

}  // namespace hyenarec::cpu
