#pragma once

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/error.hpp"

namespace reprise {

/// Element types of the replay store's datasets; on disk little-endian.
enum class Hdf5Type : std::uint8_t { kUInt8, kUInt32, kUInt64, kFloat32, kFloat16 };
template <class T>
inline constexpr Hdf5Type hdf5_type_of = [] { static_assert(sizeof(T) == 0, "no HDF5 type for this type"); }();
template <>
inline constexpr Hdf5Type hdf5_type_of<std::uint8_t> = Hdf5Type::kUInt8;
template <>
inline constexpr Hdf5Type hdf5_type_of<std::uint32_t> = Hdf5Type::kUInt32;
template <>
inline constexpr Hdf5Type hdf5_type_of<std::uint64_t> = Hdf5Type::kUInt64;
template <>
inline constexpr Hdf5Type hdf5_type_of<float> = Hdf5Type::kFloat32;
template <>
inline constexpr Hdf5Type hdf5_type_of<std::uint16_t> = Hdf5Type::kFloat16;  ///< bits of IEEE half precision

/// One HDF5 object identifier, closed when it leaves scope.
class Hdf5Handle {
 public:
  using Close = int (*)(std::int64_t);
  Hdf5Handle(std::int64_t id, Close close, const std::string& what);
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Hdf5Handle& operator=(Hdf5Handle&&) = delete;
  ~Hdf5Handle() {
    if (id_ >= 0) close_(id_);
  }
  [[nodiscard]] std::int64_t get() const { return id_; }

 private:
  std::int64_t id_;
  Close close_;
};

/// The HDF5 library may not run in two threads at once: whoever has a file open holds the library.
class Hdf5Library {
 public:
  Hdf5Library();

 private:
  std::unique_lock<std::mutex> lock_;
};

inline constexpr std::int64_t kHdf5ChunkElements = 64 * 1024;

/// Builds a file in memory: HDF5 itself never writes to the disk, where a full one would leave it with handles that
/// crash the process at its end. Equal content gives equal bytes.
class Hdf5Image {
 public:
  Hdf5Image();
  ~Hdf5Image();
  Hdf5Image(const Hdf5Image&) = delete;
  Hdf5Image& operator=(const Hdf5Image&) = delete;

  /// A one-dimensional dataset: chunks of 64 K elements, shuffle, deflate 1, Fletcher32, fill value all ones.
  template <class T>
  void write(const char* name, std::span<const T> values) {
    write(name, values.data(), static_cast<std::int64_t>(values.size()), hdf5_type_of<T>);
  }
  void write_attribute(const char* name, const std::string& value);
  /// The bytes of the file; the end of this object.
  [[nodiscard]] std::string finish();

 private:
  void write(const char* name, const void* values, std::int64_t size, Hdf5Type type);

  Hdf5Library library_;
  std::int64_t file_;
};

/// Reads a file that nobody has promised to be sound. Throws Error(kData) that names file and dataset.
class Hdf5File {
 public:
  explicit Hdf5File(std::filesystem::path path);

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] bool contains(const char* name) const;
  [[nodiscard]] std::string attribute(const char* name) const;
  /// Elements of a dataset, after checking that it is of this type, one-dimensional, stored whole in this file, with
  /// no filter but ours, and not larger than its bytes in the file can unpack to. Allocate only after this.
  template <class T>
  [[nodiscard]] std::int64_t size(const char* name) const {
    return size(name, hdf5_type_of<T>);
  }
  /// Reads a dataset of values.size() elements; returns how many of its first elements are sound.
  template <class T>
  [[nodiscard]] std::int64_t read(const char* name, std::span<T> values) const {
    return read(name, values.data(), static_cast<std::int64_t>(values.size()), hdf5_type_of<T>);
  }

 private:
  [[nodiscard]] std::int64_t size(const char* name, Hdf5Type type) const;
  [[nodiscard]] std::int64_t read(const char* name, void* values, std::int64_t size, Hdf5Type type) const;
  [[noreturn]] void refuse(const char* name, std::string_view reason) const;

  Hdf5Library library_;
  std::filesystem::path path_;
  std::int64_t bytes_ = 0;
  Hdf5Handle file_;
};

}  // namespace reprise
