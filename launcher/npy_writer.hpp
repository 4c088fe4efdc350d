#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "core/file_io.hpp"

namespace reprise {

/// A NumPy file (format 1.0) of one float32 vector whose length is known, written in pieces. It appears under its name
/// when it is whole. Failures throw Error(kDisk).
class NpyWriter {
 public:
  NpyWriter(std::filesystem::path path, std::int64_t size);

  void append(std::span<const float> values);
  /// All `size` values must have come.
  void finish();

 private:
  OutputFile file_;
  std::int64_t size_, done_ = 0, offset_ = 0;
};

}  // namespace reprise
