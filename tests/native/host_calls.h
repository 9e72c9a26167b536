// The calls of legendre_conv.h and legendre_blocks.h on the host, which run in the libraries of legendre_host.cpp and
// host_blocks.cpp. Those libraries take longest to compile, so they are compiled once for all tests of a run.
#pragma once
#include "cuda/legendre_blocks.h"
#include "cuda/legendre_conv.h"

extern "C" {
int64_t legendre_workspace(const hyenarec::LegendreConvArgs* args, bool backward);
void legendre_run(const hyenarec::LegendreConvArgs* args, bool backward, bool reversed);
int64_t blocks_call_workspace(const hyenarec::LegendreBlocksArgs* args, bool backward);
const char* blocks_call(const hyenarec::LegendreBlocksArgs* args, bool backward);
}

namespace hyenarec {

int64_t legendre_conv_workspace(const LegendreConvArgs& args, bool backward) {
  LegendreConvArgs sizes = args;
  sizes.rows.workspace = nullptr;
  return legendre_workspace(&sizes, backward);
}
const char* legendre_conv_forward(const LegendreConvArgs& args, void*) {
  legendre_run(&args, false, false);
  return nullptr;
}
const char* legendre_conv_backward(const LegendreConvArgs& args, void*) {
  legendre_run(&args, true, false);
  return nullptr;
}

int64_t legendre_blocks_workspace(const LegendreBlocksArgs& args, bool backward) {
  return blocks_call_workspace(&args, backward);
}
const char* legendre_blocks_forward(const LegendreBlocksArgs& args, void*) { return blocks_call(&args, false); }
const char* legendre_blocks_backward(const LegendreBlocksArgs& args, void*) { return blocks_call(&args, true); }

}  // namespace hyenarec
