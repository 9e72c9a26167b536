// One aligned allocation, handed out in pieces. Its size comes from a dry run of the same code: in an arena without
// memory, `take` only counts bytes.
#pragma once
#include <cstdint>
#include <new>

#include "args.h"

namespace hyenarec::HYENAREC_ISA {

class Arena {
 public:
  Arena() = default;
  explicit Arena(int64_t bytes)
      : base_(static_cast<char*>(::operator new(bytes, std::align_val_t{64}))), size_(bytes) {
    count_scratch(size_);
  }
  ~Arena() {
    count_scratch(-size_);
    ::operator delete(base_, std::align_val_t{64});
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <class T>
  T* take(int64_t count) {
    int64_t at = used_;
    used_ += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  template <class T>
  T* base() const {
    return reinterpret_cast<T*>(base_);
  }
  int64_t used() const { return used_; }

 private:
  char* base_ = nullptr;
  int64_t size_ = 0, used_ = 0;
};

}  // namespace hyenarec::HYENAREC_ISA
