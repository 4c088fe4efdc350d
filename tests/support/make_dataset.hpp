#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace reprise {

/// Appends the bytes of a value, little-endian as this machine.
template <class T>
void append_value(std::string& bytes, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  bytes.append(raw, sizeof(T));
}

inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

struct DatasetOptions {
  int dtype_code = 4;                                    ///< 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16
  std::vector<std::vector<std::uint8_t>> masks = {};     ///< by document; empty = no .mask.bin
  std::vector<std::vector<float>> weights = {};          ///< by document; empty = no .weight.bin
  std::int64_t sequence_tokens = std::int64_t{1} << 30;  ///< documents are cut into sequences of at most this many
};

/// Writes Megatron's `<prefix>.idx` and `<prefix>.bin` and the sidecars that the options name.
inline void make_dataset(const std::filesystem::path& prefix, const std::vector<std::vector<std::int64_t>>& documents,
                         const DatasetOptions& options = {}) {
  std::string tokens, lengths, pointers, ends;
  std::int64_t sequences = 0;
  append_value(ends, sequences);
  for (const auto& document : documents) {
    for (std::size_t i = 0; i < document.size(); ++i) {
      if (static_cast<std::int64_t>(i) % options.sequence_tokens == 0) {
        const auto left = static_cast<std::int64_t>(document.size() - i);
        append_value(lengths,
                     static_cast<std::int32_t>(left < options.sequence_tokens ? left : options.sequence_tokens));
        append_value(pointers, static_cast<std::int64_t>(tokens.size()));
        ++sequences;
      }
      switch (options.dtype_code) {
        case 1: append_value(tokens, static_cast<std::uint8_t>(document[i])); break;
        case 2: append_value(tokens, static_cast<std::int8_t>(document[i])); break;
        case 3: append_value(tokens, static_cast<std::int16_t>(document[i])); break;
        case 4: append_value(tokens, static_cast<std::int32_t>(document[i])); break;
        case 5: append_value(tokens, document[i]); break;
        default: append_value(tokens, static_cast<std::uint16_t>(document[i])); break;
      }
    }
    append_value(ends, sequences);
  }
  std::string index("MMIDIDX\0\0", 9);
  append_value(index, std::uint64_t{1});
  append_value(index, static_cast<std::uint8_t>(options.dtype_code));
  append_value(index, static_cast<std::uint64_t>(sequences));
  append_value(index, static_cast<std::uint64_t>(documents.size() + 1));
  write_bytes(prefix.string() + ".idx", index + lengths + pointers + ends);
  write_bytes(prefix.string() + ".bin", tokens);

  std::string masks, weights;
  for (const auto& mask : options.masks) masks.append(mask.begin(), mask.end());
  for (const auto& weight : options.weights) {
    for (const float value : weight) append_value(weights, value);
  }
  if (!options.masks.empty()) write_bytes(prefix.string() + ".mask.bin", masks);
  if (!options.weights.empty()) write_bytes(prefix.string() + ".weight.bin", weights);
}

}  // namespace reprise
