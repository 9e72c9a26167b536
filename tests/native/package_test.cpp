// Runs an AOTInductor package in a program without Python: package_test LIBRARY PACKAGE INPUT OUTPUT B L D. INPUT and
// OUTPUT hold float32 values and nothing else.
#include <ATen/ops/from_blob.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <fstream>
#include <iostream>

int main(int, char** arguments) {
  if (!dlopen(arguments[1], RTLD_NOW)) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  const std::vector<int64_t> sizes{std::stoll(arguments[5]), std::stoll(arguments[6]), std::stoll(arguments[7])};
  std::vector<float> values(size_t(sizes[0] * sizes[1] * sizes[2]));
  const std::streamsize bytes = std::streamsize(values.size() * sizeof(float));
  std::ifstream(arguments[3], std::ios::binary).read(reinterpret_cast<char*>(values.data()), bytes);
  torch::inductor::AOTIModelPackageLoader package(arguments[2]);
  const at::Tensor out = package.run({at::from_blob(values.data(), sizes)})[0];
  std::ofstream(arguments[4], std::ios::binary).write(static_cast<const char*>(out.const_data_ptr()), bytes);
}
