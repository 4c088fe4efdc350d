#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "core/dtype.hpp"
#include "core/half.hpp"
#include "launcher/safetensors.hpp"

namespace reprise {

namespace {

constexpr std::int64_t kChunkElements = std::int64_t{1} << 20;

struct Placed {
  const SafetensorsTensor* tensor = nullptr;
  std::int64_t begin = 0, end = 0;  // in the buffer
};

/// Element size descending, then name: every tensor is aligned for its type.
std::vector<Placed> place(const std::vector<SafetensorsTensor>& tensors) {
  std::vector<Placed> placed;
  for (const SafetensorsTensor& tensor : tensors) placed.push_back({&tensor});
  std::sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    const auto size_a = safetensors_element_bytes(a.tensor->dtype), size_b = safetensors_element_bytes(b.tensor->dtype);
    return size_a != size_b ? size_a > size_b : a.tensor->name < b.tensor->name;
  });
  std::int64_t offset = 0;
  for (Placed& entry : placed) {
    const std::int64_t element = safetensors_element_bytes(entry.tensor->dtype);
    REPRISE_CHECK(element > 0, "{}: dtype {}", entry.tensor->name, entry.tensor->dtype);
    std::int64_t bytes = element;
    for (const std::int64_t extent : entry.tensor->shape) bytes *= extent;
    entry.begin = offset;
    entry.end = offset += bytes;
  }
  return placed;
}

std::string header_of(const std::vector<Placed>& placed, const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::string text = header.dump();
  text.pop_back();
  // ordered_json looks a key up by walking all others, so the tensors are appended as text.
  for (const Placed& entry : placed) {
    if (text.size() > 1) text += ',';
    text += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                        nlohmann::json(entry.tensor->name).dump(), entry.tensor->dtype,
                        fmt::join(entry.tensor->shape, ","), entry.begin, entry.end);
  }
  text += '}';
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

template <class Stored, class T, class Convert>
void convert_elements(VectorView<const T> values, std::uint8_t* bytes, Convert convert) {
  for (std::int64_t i = 0; i < values.size; ++i) {
    const Stored stored = convert(static_cast<float>(values[i]));
    std::memcpy(bytes + i * static_cast<std::int64_t>(sizeof(Stored)), &stored, sizeof(Stored));
  }
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, const std::vector<SafetensorsTensor>& tensors,
                                     const std::map<std::string, std::string>& metadata)
    : file_(std::move(path)) {
  const std::vector<Placed> placed = place(tensors);
  const std::string header = header_of(placed, metadata);
  const auto header_bytes = static_cast<std::int64_t>(header.size());
  file_.write(0, &header_bytes, 8);
  file_.write(8, header.data(), header_bytes);
  for (const Placed& entry : placed) {
    const bool is_new = slots_
                            .emplace(entry.tensor->name, Slot{entry.tensor->dtype, 8 + header_bytes + entry.begin,
                                                              8 + header_bytes + entry.end, 0})
                            .second;
    REPRISE_CHECK(is_new, "tensor {} is declared twice for {}", entry.tensor->name, file_.path().string());
  }
}

SafetensorsWriter::Slot& SafetensorsWriter::slot(const std::string& name) {
  const auto entry = slots_.find(name);
  REPRISE_CHECK(entry != slots_.end(), "tensor {} was not declared for {}", name, file_.path().string());
  return entry->second;
}

void SafetensorsWriter::write_bytes(const std::string& name, const void* data, std::int64_t bytes) {
  Slot& target = slot(name);
  REPRISE_CHECK(target.begin + target.filled + bytes <= target.end, "{} bytes more than tensor {} holds",
                target.begin + target.filled + bytes - target.end, name);
  file_.write(target.begin + target.filled, data, bytes);
  target.filled += bytes;
}

template <class T>
void SafetensorsWriter::write(const std::string& name, VectorView<const T> values) {
  const std::string dtype = slot(name).dtype;
  const auto element = safetensors_element_bytes(dtype);
  if (dtype == safetensors_dtype<T>()) {
    write_bytes(name, values.data, values.size * element);
    return;
  }
  std::vector<std::uint8_t> bytes;
  for (std::int64_t begin = 0; begin < values.size; begin += kChunkElements) {
    const VectorView<const T> part = values.slice(begin, std::min(kChunkElements, values.size - begin));
    bytes.resize(static_cast<std::size_t>(part.size * element));
    if (dtype == "F32") {
      convert_elements<float>(part, bytes.data(), [](float value) { return value; });
    } else if (dtype == "BF16") {
      convert_elements<BFloat16>(part, bytes.data(), [](float value) { return BFloat16(value); });
    } else {
      REPRISE_CHECK(dtype == "F16", "no conversion to {} for tensor {}", dtype, name);
      convert_elements<std::uint16_t>(part, bytes.data(), float_to_half);
    }
    write_bytes(name, bytes.data(), static_cast<std::int64_t>(bytes.size()));
  }
}

template void SafetensorsWriter::write<float>(const std::string&, VectorView<const float>);
template void SafetensorsWriter::write<BFloat16>(const std::string&, VectorView<const BFloat16>);

void SafetensorsWriter::finish() {
  for (const auto& [name, entry] : slots_) {
    REPRISE_CHECK(entry.begin + entry.filled == entry.end, "tensor {} of {} holds {} of {} bytes", name,
                  file_.path().string(), entry.filled, entry.end - entry.begin);
  }
  file_.finish();
}

}  // namespace reprise
