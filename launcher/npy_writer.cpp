#include "launcher/npy_writer.hpp"

#include <bit>
#include <string>

#include "core/error.hpp"
#include "core/math.hpp"

namespace reprise {

namespace {

/// Magic, version 1.0, and a header whose length makes the data begin at a multiple of 64 bytes.
std::string npy_header(std::int64_t size) {
  static_assert(std::endian::native == std::endian::little, "the header says little-endian");
  constexpr std::int64_t kPrefixBytes = 10, kAlignment = 64;
  std::string description = fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", size);
  const auto length = static_cast<std::int64_t>(description.size()) + 1;  // the line's end
  const std::int64_t padded = round_up(kPrefixBytes + length, kAlignment) - kPrefixBytes;
  description.append(static_cast<std::size_t>(padded - length), ' ');
  description += '\n';
  std::string header("\x93NUMPY\x01\x00", 8);
  header += static_cast<char>(padded & 0xff);
  header += static_cast<char>(padded >> 8);
  return header + description;
}

}  // namespace

NpyWriter::NpyWriter(std::filesystem::path path, std::int64_t size) : file_(std::move(path)), size_(size) {
  const std::string header = npy_header(size);
  file_.write(0, header.data(), static_cast<std::int64_t>(header.size()));
  offset_ = static_cast<std::int64_t>(header.size());
}

void NpyWriter::append(std::span<const float> values) {
  file_.write(offset_, values.data(), static_cast<std::int64_t>(values.size_bytes()));
  offset_ += static_cast<std::int64_t>(values.size_bytes());
  done_ += static_cast<std::int64_t>(values.size());
}

void NpyWriter::finish() {
  REPRISE_CHECK(done_ == size_, "{} of {} values written to {}", done_, size_, file_.path().string());
  file_.finish();
}

}  // namespace reprise
