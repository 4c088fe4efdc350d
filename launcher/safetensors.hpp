#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.hpp"
#include "core/file_io.hpp"
#include "core/view.hpp"
#include "parallel/shard.hpp"

namespace reprise {

// The safetensors format (github.com/huggingface/safetensors, README "Format"): u64 little-endian N <= 100,000,000, N
// bytes of JSON header, then the buffer. Tensors are row-major, little-endian; their offsets, sorted, tile the buffer.

/// Bytes of one element of a safetensors dtype ("F32", "BF16", "F16", "I64", "U8", ...); 0 for an unknown name.
[[nodiscard]] std::int64_t safetensors_element_bytes(std::string_view dtype);

/// The safetensors name of a storage type: "F32" or "BF16".
template <class T>
[[nodiscard]] std::string_view safetensors_dtype();

struct SafetensorsEntry {
  std::string name;
  std::string dtype;                ///< "F32", "BF16", "F16", ...
  std::vector<std::int64_t> shape;  ///< empty = scalar
  std::int64_t begin = 0, end = 0;  ///< bytes in the buffer

  /// As a matrix: [n] and scalars are [n, 1]; more dimensions are flattened behind the first.
  [[nodiscard]] std::int64_t rows() const { return shape.empty() ? 1 : shape.front(); }
  [[nodiscard]] std::int64_t cols() const;
  [[nodiscard]] std::int64_t bytes() const { return end - begin; }
};

/// Strict reader that streams rectangles; holds the header only. Any flaw of the file throws Error(kind) naming file,
/// tensor and flaw: sizes, overlaps, holes, trailing bytes, overflow, repeated or unknown keys, bad UTF-8, offsets or
/// shapes that are not unsigned integers, unknown dtypes. Reading is safe from several threads.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(std::filesystem::path path, ErrorKind kind = ErrorKind::kUsage);

  [[nodiscard]] const std::filesystem::path& path() const { return file_.path(); }
  [[nodiscard]] const std::vector<SafetensorsEntry>& entries() const { return entries_; }  ///< by offset
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// Null when absent.
  [[nodiscard]] const SafetensorsEntry* find(const std::string& name) const;
  /// Throws Error(kind) naming the tensor when absent.
  [[nodiscard]] const SafetensorsEntry& at(const std::string& name) const;

  /// output = rows x cols of the tensor as a matrix, converted to T (float or BFloat16) from F32, BF16 or F16; other
  /// dtypes throw by name. output is [rows.size(), cols.size()].
  template <class T>
  void read(const SafetensorsEntry& entry, Range rows, Range cols, MatrixView<T> output) const;
  /// The whole tensor.
  template <class T>
  void read(const SafetensorsEntry& entry, MatrixView<T> output) const {
    read<T>(entry, {0, entry.rows()}, {0, entry.cols()}, output);
  }
  /// Bytes [begin, begin + count) of the tensor as stored, whatever its dtype.
  void read_bytes(const SafetensorsEntry& entry, std::int64_t begin, std::int64_t count, void* output) const;

 private:
  [[noreturn]] void refuse(const std::string& flaw) const;
  void parse_header(const std::string& header);
  void check_offsets() const;

  InputFile file_;
  std::int64_t buffer_begin_ = 0;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::size_t> index_;
  std::map<std::string, std::string> metadata_;
};

/// What a file is going to hold.
struct SafetensorsTensor {
  std::string name;
  std::string dtype;  ///< of the stored bytes: "F32", "BF16", "F16", "I64", ...
  std::vector<std::int64_t> shape;
};

/// Writes a file tensor by tensor or piece by piece; needs no more memory than the piece. The header (padded to 8
/// bytes) and the layout (element size descending, then name) depend on the declared tensors alone, so equal content is
/// an equal file. The file appears under its name in `finish()`. Failures throw Error(kDisk).
class SafetensorsWriter {
 public:
  SafetensorsWriter(std::filesystem::path path, const std::vector<SafetensorsTensor>& tensors,
                    const std::map<std::string, std::string>& metadata = {});

  /// Appends bytes to the named tensor; tensors may be filled in any order, each from front to back.
  void write_bytes(const std::string& name, const void* data, std::int64_t bytes);
  /// Appends elements, converted from T (float or BFloat16) to the tensor's dtype (F32, BF16, F16), rounding to nearest
  /// even.
  template <class T>
  void write(const std::string& name, VectorView<const T> values);
  /// Checks that every tensor is full, fsyncs, renames.
  void finish();

 private:
  struct Slot {
    std::string dtype;
    std::int64_t begin = 0, end = 0, filled = 0;  ///< file offsets; bytes
  };
  Slot& slot(const std::string& name);

  OutputFile file_;
  std::map<std::string, Slot> slots_;
};

}  // namespace reprise
