// Recommends from an exported model in a program without Python:
//
//   hyenarec export RUN --out exported --formats package
//   recommend LIBRARY exported/history-package.pt2 3,17,2 5
//
// LIBRARY is hyenarec_kernels/_C.abi3.so. Each argument after the package is one history: item numbers as in
// exported/export.json, oldest first. Prints one line per history: its best items, "NUMBER:SCORE", with spaces between.
#include <ATen/ops/from_blob.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <iostream>
#include <sstream>

int main(int count, char** arguments) {
  if (count < 4) {
    std::cerr << "usage: recommend LIBRARY PACKAGE HISTORY...\n";
    return 2;
  }
  if (!dlopen(arguments[1], RTLD_NOW)) {  // the operators that the package calls
    std::cerr << dlerror() << "\n";
    return 1;
  }
  std::vector<std::vector<int64_t>> histories;
  size_t longest = 2;  // the fewest events per history that the package takes
  for (int i = 3; i < count; ++i) {
    std::istringstream text(arguments[i]);
    std::vector<int64_t> history;
    for (std::string item; std::getline(text, item, ',');) history.push_back(std::stoll(item));
    longest = std::max(longest, history.size());
    histories.push_back(history);
  }
  const int64_t users = int64_t(histories.size());
  std::vector<int64_t> items, lengths;  // (users, longest), right-padded, and (users,)
  for (std::vector<int64_t>& history : histories) {
    lengths.push_back(int64_t(history.size()));
    history.resize(longest);
    items.insert(items.end(), history.begin(), history.end());
  }
  torch::inductor::AOTIModelPackageLoader package(arguments[2]);
  const std::vector<at::Tensor> best = package.run({at::from_blob(items.data(), {users, int64_t(longest)}, at::kLong),
                                                    at::from_blob(lengths.data(), {users}, at::kLong)});
  for (int64_t user = 0; user < users; ++user)
    for (int64_t k = 0; k < best[0].size(1); ++k)
      std::cout << best[1].const_data_ptr<int64_t>()[user * best[1].stride(0) + k] << ":"
                << best[0].const_data_ptr<float>()[user * best[0].stride(0) + k]
                << (k + 1 < best[0].size(1) ? " " : "\n");
}
