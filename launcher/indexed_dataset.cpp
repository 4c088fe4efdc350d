#include "launcher/indexed_dataset.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "core/random.hpp"
#include "core/sha256.hpp"
#include "launcher/hash_cache.hpp"

namespace reprise {

static_assert(std::endian::native == std::endian::little, "indexed datasets are little-endian");

namespace {

// Layout of an .idx file (Megatron-LM, core/datasets/indexed_dataset.py); arrays behind the header are not aligned.
constexpr std::string_view kMagic{"MMIDIDX\0\0", 9};
constexpr std::int64_t kVersionAt = 9, kDtypeAt = 17, kSequencesAt = 18, kDocumentsAt = 26, kHeaderBytes = 34;

struct TokenType {
  const char* name;
  std::int64_t bytes;
};

/// By the code in the header; 0 bytes = not an integer type.
constexpr TokenType kTokenTypes[] = {{"?", 0},     {"uint8", 1},   {"int8", 1},    {"int16", 2}, {"int32", 4},
                                     {"int64", 8}, {"float64", 0}, {"float32", 0}, {"uint16", 2}};

std::filesystem::path with_suffix(const std::filesystem::path& prefix, const char* suffix) {
  return prefix.string() + suffix;
}

/// The sidecars of a data set and the suffixes of its other files.
constexpr const char* kIndexSuffix = ".idx";
constexpr const char* kTokensSuffix = ".bin";
constexpr const char* kMaskSuffix = ".mask.bin";
constexpr const char* kWeightSuffix = ".weight.bin";

template <class T>
void widen(const std::uint8_t* bytes, std::int64_t count, std::vector<std::int64_t>& tokens) {
  for (std::int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, bytes + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
    tokens[static_cast<std::size_t>(i)] = static_cast<std::int64_t>(value);
  }
}

}  // namespace

std::uint64_t sample_hash(std::span<const std::int32_t> tokens, std::span<const std::uint8_t> mask) {
  return hash_bytes(mask.data(), mask.size(), hash_bytes(tokens.data(), tokens.size_bytes()));
}

IndexedDataset::IndexedDataset(std::filesystem::path prefix, std::int64_t vocab_size, std::uint64_t ordinal)
    : prefix_(std::move(prefix)), vocab_size_(vocab_size), ordinal_(ordinal) {
  REPRISE_CHECK(ordinal < (std::uint64_t{1} << 16), "prefix ordinal {}", ordinal);
  index_ = std::make_unique<MappedFile>(with_suffix(prefix_, kIndexSuffix), ErrorKind::kData);
  tokens_ = std::make_unique<MappedFile>(with_suffix(prefix_, kTokensSuffix), ErrorKind::kData);
  read_index();
  check_sequences();
  check_documents();
  open_sidecars();
}

void IndexedDataset::read_index() {
  const std::string path = index_->path().string();
  const std::int64_t bytes = index_->size();
  require(bytes >= kHeaderBytes, ErrorKind::kData, "{}: {} bytes, an index has at least {}", path, bytes, kHeaderBytes);
  require(std::memcmp(index_->data(), kMagic.data(), kMagic.size()) == 0, ErrorKind::kData,
          "{}: byte 0: not a Megatron index (magic MMIDIDX is missing)", path);
  const auto version = index_->load<std::uint64_t>(kVersionAt);
  require(version == 1, ErrorKind::kData, "{}: byte {}: version {}, only 1 is known", path, kVersionAt, version);
  dtype_code_ = index_->load<std::uint8_t>(kDtypeAt);
  require(dtype_code_ >= 1 && dtype_code_ < static_cast<int>(std::size(kTokenTypes)), ErrorKind::kData,
          "{}: byte {}: unknown dtype code {}", path, kDtypeAt, dtype_code_);
  const TokenType type = kTokenTypes[dtype_code_];
  require(type.bytes != 0, ErrorKind::kData, "{}: byte {}: tokens of dtype {} (code {}), an integer type is needed",
          path, kDtypeAt, type.name, dtype_code_);
  element_bytes_ = type.bytes;

  const auto sequences = index_->load<std::uint64_t>(kSequencesAt),
             documents = index_->load<std::uint64_t>(kDocumentsAt);
  const auto limit = static_cast<std::uint64_t>(bytes);  // also bounds the products below
  require(sequences <= limit && documents <= limit, ErrorKind::kData,
          "{}: byte {}: {} sequences and {} document indices in a file of {} bytes", path, kSequencesAt, sequences,
          documents, bytes);
  num_sequences_ = static_cast<std::int64_t>(sequences);
  const auto indices = static_cast<std::int64_t>(documents);
  lengths_begin_ = kHeaderBytes;
  pointers_begin_ = lengths_begin_ + 4 * num_sequences_;
  documents_begin_ = pointers_begin_ + 8 * num_sequences_;
  const std::int64_t expected = documents_begin_ + 8 * indices;
  require(bytes != expected + num_sequences_ || num_sequences_ == 0, ErrorKind::kData,
          "{}: byte {}: holds sequence modes; multimodal data is not supported", path, expected);
  require(bytes == expected, ErrorKind::kData,
          "{}: {} bytes, but {} sequences and {} document indices take {}; the file is truncated or damaged", path,
          bytes, sequences, documents, expected);
  require(indices >= 1, ErrorKind::kData, "{}: byte {}: no document indices", path, kDocumentsAt);
  num_documents_ = indices - 1;
}

void IndexedDataset::check_sequences() const {
  const std::string path = index_->path().string();
  std::int64_t expected = 0;  // bytes of the .bin
  for (std::int64_t s = 0; s < num_sequences_; ++s) {
    const auto length = index_->load<std::int32_t>(lengths_begin_ + 4 * s);
    const auto pointer = index_->load<std::int64_t>(pointers_begin_ + 8 * s);
    require(length >= 0, ErrorKind::kData, "{}: byte {}: sequence {} has length {}", path, lengths_begin_ + 4 * s, s,
            length);
    require(pointer == expected, ErrorKind::kData,
            "{}: byte {}: sequence {} begins at byte {} of the .bin, the one before ends at {}", path,
            pointers_begin_ + 8 * s, s, pointer, expected);
    expected += length * element_bytes_;
    require(expected <= tokens_->size(), ErrorKind::kData,
            "{}: truncated at byte {}: sequence {} of {} ends at byte {}", tokens_->path().string(), tokens_->size(), s,
            path, expected);
  }
  require(expected == tokens_->size(), ErrorKind::kData, "{}: byte {}: {} bytes that the index does not know",
          tokens_->path().string(), expected, tokens_->size() - expected);
}

void IndexedDataset::check_documents() const {
  const std::string path = index_->path().string();
  std::int64_t previous = 0;
  for (std::int64_t d = 0; d <= num_documents_; ++d) {
    const std::int64_t index = document_index(d);
    require(index >= previous && index <= num_sequences_ && (d > 0 || index == 0), ErrorKind::kData,
            "{}: byte {}: document index {} is {}; indices rise from 0 to {}, the one before is {}", path,
            documents_begin_ + 8 * d, d, index, num_sequences_, previous);
    previous = index;
  }
  require(previous == num_sequences_, ErrorKind::kData,
          "{}: byte {}: the documents end at sequence {}, there are {} sequences", path,
          documents_begin_ + 8 * num_documents_, previous, num_sequences_);
}

void IndexedDataset::open_sidecars() {
  num_tokens_ = tokens_->size() / element_bytes_;
  const auto open = [&](const char* suffix, std::int64_t bytes_per_token) {
    const std::filesystem::path path = with_suffix(prefix_, suffix);
    if (!std::filesystem::exists(path)) return std::unique_ptr<MappedFile>();
    auto file = std::make_unique<MappedFile>(path, ErrorKind::kData);
    require(file->size() == num_tokens_ * bytes_per_token, ErrorKind::kData,
            "{}: {} bytes, but {} tokens at {} bytes each take {}", path.string(), file->size(), num_tokens_,
            bytes_per_token, num_tokens_ * bytes_per_token);
    return file;
  };
  mask_ = open(kMaskSuffix, 1);
  weight_ = open(kWeightSuffix, static_cast<std::int64_t>(sizeof(float)));
}

std::int64_t IndexedDataset::document_index(std::int64_t index) const {
  return index_->load<std::int64_t>(documents_begin_ + 8 * index);
}

std::int64_t IndexedDataset::token_begin(std::int64_t sequence) const {
  if (sequence == num_sequences_) return num_tokens_;
  return index_->load<std::int64_t>(pointers_begin_ + 8 * sequence) / element_bytes_;
}

Range IndexedDataset::token_range(std::int64_t document) const {
  REPRISE_CHECK(0 <= document && document < num_documents_, "document {} of {}", document, num_documents_);
  return {token_begin(document_index(document)), token_begin(document_index(document + 1))};
}

std::int64_t IndexedDataset::length(std::int64_t document) const {
  return token_range(document).size();
}

Sample IndexedDataset::read(std::int64_t document) const {
  const Range range = token_range(document);
  const auto count = static_cast<std::size_t>(range.size());
  std::vector<std::int64_t> wide(count);
  const std::uint8_t* bytes = tokens_->data() + range.begin * element_bytes_;
  switch (dtype_code_) {
    case 1: widen<std::uint8_t>(bytes, range.size(), wide); break;
    case 2: widen<std::int8_t>(bytes, range.size(), wide); break;
    case 3: widen<std::int16_t>(bytes, range.size(), wide); break;
    case 4: widen<std::int32_t>(bytes, range.size(), wide); break;
    case 5: widen<std::int64_t>(bytes, range.size(), wide); break;
    default: widen<std::uint16_t>(bytes, range.size(), wide); break;
  }

  Sample sample;
  sample.id = sample_id(document);
  sample.tokens.resize(count);
  const std::int64_t limit = vocab_size_ > 0 ? vocab_size_ : std::int64_t{std::numeric_limits<std::int32_t>::max()} + 1;
  for (std::size_t i = 0; i < count; ++i) {
    require(
        0 <= wide[i] && wide[i] < limit, ErrorKind::kData,
        "{}: byte {}: token {} of document {} is {}, outside [0, {}); was the data made with this model's tokenizer?",
        tokens_->path().string(), (range.begin + static_cast<std::int64_t>(i)) * element_bytes_, i, document, wide[i],
        limit);
    sample.tokens[i] = static_cast<std::int32_t>(wide[i]);
  }
  sample.mask.assign(count, 1);
  if (mask_ != nullptr) {
    std::copy_n(mask_->data() + range.begin, count, sample.mask.begin());
    for (std::size_t i = 0; i < count; ++i) {
      require(sample.mask[i] <= 1, ErrorKind::kData, "{}: byte {}: mask {} of document {}, only 0 and 1 are known",
              mask_->path().string(), range.begin + static_cast<std::int64_t>(i), sample.mask[i], document);
    }
  } else if (count > 0) {
    sample.mask[0] = 0;
  }
  if (weight_ != nullptr) {
    sample.weight.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t offset = (range.begin + static_cast<std::int64_t>(i)) * 4;
      sample.weight[i] = weight_->load<float>(offset);
      require(std::isfinite(sample.weight[i]) && sample.weight[i] >= 0.0f, ErrorKind::kData,
              "{}: byte {}: weight {} of document {}; weights are finite and not negative", weight_->path().string(),
              offset, sample.weight[i], document);
    }
  }
  sample.hash = sample_hash(sample.tokens, sample.mask);
  return sample;
}

std::int64_t IndexedDataset::count_targets(std::int64_t document, std::int64_t max_tokens) const {
  const Range range = token_range(document);
  const std::int64_t count = std::min(range.size(), max_tokens);
  if (count < 2) return 0;
  if (mask_ == nullptr) return count - 1;
  return count - 1 - std::count(mask_->data() + range.begin + 1, mask_->data() + range.begin + count, std::uint8_t{0});
}

std::string dataset_fingerprint(const std::filesystem::path& prefix, Communicator* world,
                                const std::filesystem::path& cache) {
  std::vector<std::string> suffixes;
  std::vector<std::filesystem::path> paths;
  for (const char* suffix : {kIndexSuffix, kTokensSuffix, kMaskSuffix, kWeightSuffix}) {
    const std::filesystem::path path = with_suffix(prefix, suffix);
    const bool is_optional = suffix == kMaskSuffix || suffix == kWeightSuffix;
    if (is_optional && !std::filesystem::exists(path)) continue;
    suffixes.emplace_back(suffix);
    paths.push_back(path);
  }
  const std::vector<std::string> hashes = cached_sha256_tree(paths, ErrorKind::kData, cache, world);
  std::string text;
  for (std::size_t i = 0; i < hashes.size(); ++i) text += suffixes[i] + " " + hashes[i] + "\n";
  return sha256_hex(text);
}

}  // namespace reprise
