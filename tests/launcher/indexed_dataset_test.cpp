#include "launcher/indexed_dataset.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "core/file_io.hpp"
#include "core/random.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/make_dataset.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

using Documents = std::vector<std::vector<std::int64_t>>;
const Documents kDocuments = {{1, 2, 3, 4, 5}, {}, {7}, {100, 0, 99}};

TEST(IndexedDataset, EveryIntegerTypeIsRead) {
  for (const int code : {1, 2, 3, 4, 5, 8}) {
    for (const std::int64_t sequence_tokens : {1, 2, 100}) {
      const TemporaryFolder folder;
      make_dataset(folder / "d", kDocuments, {.dtype_code = code, .sequence_tokens = sequence_tokens});
      const IndexedDataset dataset(folder / "d", 101);
      ASSERT_EQ(dataset.size(), 4);
      EXPECT_EQ(dataset.num_tokens(), 9);
      for (std::size_t d = 0; d < kDocuments.size(); ++d) {
        const Sample sample = dataset.read(static_cast<std::int64_t>(d));
        EXPECT_EQ(std::vector<std::int64_t>(sample.tokens.begin(), sample.tokens.end()), kDocuments[d]) << code;
        EXPECT_EQ(sample.id, d);
        EXPECT_EQ(dataset.length(static_cast<std::int64_t>(d)), sample.size());
        EXPECT_TRUE(sample.weight.empty());
      }
    }
  }
}

TEST(IndexedDataset, ExtremesOfEachTypeSurvive) {
  const TemporaryFolder folder;
  make_dataset(folder / "u8", {{255}}, {.dtype_code = 1});
  make_dataset(folder / "u16", {{65535}}, {.dtype_code = 8});
  make_dataset(folder / "i64", {{2147483647}}, {.dtype_code = 5});
  EXPECT_EQ(IndexedDataset(folder / "u8").read(0).tokens[0], 255);
  EXPECT_EQ(IndexedDataset(folder / "u16").read(0).tokens[0], 65535);
  EXPECT_EQ(IndexedDataset(folder / "i64").read(0).tokens[0], 2147483647);
}

TEST(IndexedDataset, WithoutMaskAllButTheFirstTokenTrain) {
  const TemporaryFolder folder;
  make_dataset(folder / "d", kDocuments, {.sequence_tokens = 2});
  const IndexedDataset dataset(folder / "d");
  EXPECT_FALSE(dataset.has_mask());
  EXPECT_EQ(dataset.read(0).mask, (std::vector<std::uint8_t>{0, 1, 1, 1, 1}));
  EXPECT_TRUE(dataset.read(1).mask.empty());
  EXPECT_EQ(dataset.read(3).mask, (std::vector<std::uint8_t>{0, 1, 1}));
  EXPECT_EQ(dataset.count_targets(0, 100), 4);
  EXPECT_EQ(dataset.count_targets(0, 3), 2);
  EXPECT_EQ(dataset.count_targets(1, 100), 0);
  EXPECT_EQ(dataset.count_targets(2, 100), 0);
}

TEST(IndexedDataset, SidecarsAreRead) {
  const TemporaryFolder folder;
  make_dataset(folder / "d", {{5, 6, 7}, {8, 9}},
               {.masks = {{1, 0, 1}, {0, 1}}, .weights = {{1, 2, 3}, {0, 0.5f}}, .sequence_tokens = 2});
  const IndexedDataset dataset(folder / "d", 0, 3);
  EXPECT_TRUE(dataset.has_mask());
  EXPECT_TRUE(dataset.has_weight());
  const Sample sample = dataset.read(1);
  EXPECT_EQ(sample.id, (std::uint64_t{3} << 48) | 1);
  EXPECT_EQ(sample.mask, (std::vector<std::uint8_t>{0, 1}));
  EXPECT_EQ(sample.weight, (std::vector<float>{0, 0.5f}));
  EXPECT_EQ(dataset.count_targets(0, 100), 1);  // the mask of a first token trains nothing
  EXPECT_EQ(dataset.count_targets(0, 2), 0);
}

TEST(IndexedDataset, HashDependsOnTokensAndMaskAlone) {
  const TemporaryFolder folder;
  make_dataset(folder / "a", {{5, 6, 7}}, {.dtype_code = 4});
  make_dataset(folder / "b", {{5, 6, 7}}, {.dtype_code = 8, .masks = {{0, 1, 1}}, .sequence_tokens = 1});
  make_dataset(folder / "c", {{5, 6, 7}}, {.masks = {{0, 0, 1}}});
  make_dataset(folder / "d", {{5, 6, 8}});
  const auto hash = [&](const char* name) { return IndexedDataset(folder / name).read(0).hash; };
  EXPECT_EQ(hash("a"), hash("b"));
  EXPECT_NE(hash("a"), hash("c"));
  EXPECT_NE(hash("a"), hash("d"));
  const std::vector<std::int32_t> tokens = {5, 6, 7};
  const std::vector<std::uint8_t> mask = {0, 1, 1};
  EXPECT_EQ(hash("a"), hash_bytes(mask.data(), 3, hash_bytes(tokens.data(), 12)));
}

struct Damage {
  const char* name;
  std::string suffix;
  std::function<void(std::string&)> change;  // of the file's bytes
  std::vector<std::string> message;
};

void PrintTo(const Damage& damage, std::ostream* out) {
  *out << damage.name;
}

template <class T>
std::function<void(std::string&)> put(std::size_t offset, T value) {
  return [offset, value](std::string& bytes) {
    std::string raw;
    append_value(raw, value);
    bytes.replace(offset, raw.size(), raw);
  };
}

std::function<void(std::string&)> cut(std::size_t bytes_left) {
  return [bytes_left](std::string& bytes) { bytes.resize(bytes_left); };
}

std::function<void(std::string&)> extend(std::size_t more) {
  return [more](std::string& bytes) { bytes += std::string(more, '\0'); };
}

class DamagedDatasetTest : public testing::TestWithParam<Damage> {};

TEST_P(DamagedDatasetTest, IsRefusedWithFileAndOffset) {
  // 4 sequences (lengths 3, 2, 1, 2) in 3 documents: lengths at 34, pointers at 50, documents at 82, 114 bytes.
  const TemporaryFolder folder;
  make_dataset(
      folder / "d", {{1, 2, 3, 4, 5}, {6}, {7, 8}},
      {.masks = {{0, 1, 1, 1, 1}, {0}, {0, 1}}, .weights = {{1, 1, 1, 1, 1}, {1}, {1, 1}}, .sequence_tokens = 3});
  const std::filesystem::path path = folder / ("d" + GetParam().suffix);
  std::string bytes = read_text_file(path, ErrorKind::kData);
  GetParam().change(bytes);
  write_bytes(path, bytes);
  std::vector<std::string> parts = GetParam().message;
  parts.push_back("d" + GetParam().suffix);
  expect_error(ErrorKind::kData, parts, [&] {
    const IndexedDataset dataset(folder / "d", 9);
    for (std::int64_t d = 0; d < dataset.size(); ++d) (void)dataset.read(d);
  });
}

INSTANTIATE_TEST_SUITE_P(
    All, DamagedDatasetTest,
    testing::Values(
        Damage{"short_header", ".idx", cut(33), {"33 bytes"}}, Damage{"empty_index", ".idx", cut(0), {"0 bytes"}},
        Damage{"magic", ".idx", put<char>(0, 'X'), {"byte 0", "magic"}},
        Damage{"version", ".idx", put<std::uint64_t>(9, 2), {"byte 9", "version 2"}},
        Damage{"dtype_zero", ".idx", put<std::uint8_t>(17, 0), {"byte 17", "code 0"}},
        Damage{"dtype_float32", ".idx", put<std::uint8_t>(17, 7), {"byte 17", "float32"}},
        Damage{"dtype_float64", ".idx", put<std::uint8_t>(17, 6), {"byte 17", "float64"}},
        Damage{"dtype_unknown", ".idx", put<std::uint8_t>(17, 9), {"byte 17", "code 9"}},
        Damage{"dtype_of_another_width", ".idx", put<std::uint8_t>(17, 5), {"byte 58", "sequence 1"}},
        Damage{"huge_sequence_count", ".idx", put<std::uint64_t>(18, ~std::uint64_t{0}), {"byte 18"}},
        Damage{"sequence_count_that_overflows", ".idx", put<std::uint64_t>(18, std::uint64_t{1} << 61), {"byte 18"}},
        Damage{"more_sequences", ".idx", put<std::uint64_t>(18, 5), {"114 bytes", "take 126"}},
        Damage{"huge_document_count", ".idx", put<std::uint64_t>(26, ~std::uint64_t{0}), {"byte 18"}},
        Damage{"truncated_index", ".idx", cut(113), {"113 bytes", "take 114"}},
        Damage{"extended_index", ".idx", extend(1), {"115 bytes"}},
        Damage{"multimodal", ".idx", extend(4), {"byte 114", "multimodal"}},
        Damage{"negative_length", ".idx", put<std::int32_t>(38, -1), {"byte 38", "length -1"}},
        Damage{"long_length", ".idx", put<std::int32_t>(46, 1000), {"truncated at byte 32", "sequence 3"}},
        Damage{"negative_pointer", ".idx", put<std::int64_t>(50, -4), {"byte 50", "begins at byte -4"}},
        Damage{"pointer_behind", ".idx", put<std::int64_t>(58, 1 << 30), {"byte 58", "sequence 1"}},
        Damage{"unaligned_pointer", ".idx", put<std::int64_t>(58, 13), {"byte 58", "begins at byte 13"}},
        Damage{"first_document", ".idx", put<std::int64_t>(82, 1), {"byte 82"}},
        Damage{"falling_documents", ".idx", put<std::int64_t>(98, 1), {"byte 98"}},
        Damage{"document_beyond", ".idx", put<std::int64_t>(98, 5), {"byte 98"}},
        Damage{"last_document", ".idx", put<std::int64_t>(106, 3), {"byte 106", "there are 4 sequences"}},
        Damage{"truncated_tokens", ".bin", cut(31), {"truncated at byte 31", "sequence 3"}},
        Damage{"empty_tokens", ".bin", cut(0), {"truncated at byte 0"}},
        Damage{"extended_tokens", ".bin", extend(4), {"byte 32", "does not know"}},
        Damage{"negative_token", ".bin", put<std::int32_t>(4, -1), {"byte 4", "token 1 of document 0 is -1"}},
        Damage{"token_beyond_vocabulary", ".bin", put<std::int32_t>(20, 9), {"byte 20", "document 1", "[0, 9)"}},
        Damage{"short_mask", ".mask.bin", cut(7), {"7 bytes", "8 tokens"}},
        Damage{"mask_of_2", ".mask.bin", put<char>(6, 2), {"byte 6", "mask 2"}},
        Damage{"long_weight", ".weight.bin", extend(4), {"36 bytes", "take 32"}},
        Damage{"negative_weight", ".weight.bin", put<float>(8, -1.0f), {"byte 8", "weight -1"}},
        Damage{"nan_weight", ".weight.bin", put<float>(28, std::numeric_limits<float>::quiet_NaN()), {"byte 28"}}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(IndexedDataset, MissingFilesAreNamed) {
  const TemporaryFolder folder;
  expect_error(ErrorKind::kData, {"d.idx", "No such file"}, [&] { IndexedDataset(folder / "d"); });
  make_dataset(folder / "d", kDocuments);
  std::filesystem::remove(folder / "d.bin");
  expect_error(ErrorKind::kData, {"d.bin", "No such file"}, [&] { IndexedDataset(folder / "d"); });
}

TEST(IndexedDataset, EmptyDataIsRead) {
  const TemporaryFolder folder;
  make_dataset(folder / "d", {});
  const IndexedDataset dataset(folder / "d");
  EXPECT_EQ(dataset.size(), 0);
  EXPECT_EQ(dataset.num_tokens(), 0);
}

TEST(IndexedDataset, WideTokensBeyondInt32AreRefused) {
  const TemporaryFolder folder;
  make_dataset(folder / "d", {{std::int64_t{1} << 31}}, {.dtype_code = 5});
  const IndexedDataset dataset(folder / "d");
  expect_error(ErrorKind::kData, {"d.bin", "2147483648"}, [&] { (void)dataset.read(0); });
}

TEST(IndexedDataset, FingerprintCoversEveryFile) {
  const TemporaryFolder folder;
  make_dataset(folder / "d", kDocuments);
  const std::string first = dataset_fingerprint(folder / "d");
  EXPECT_EQ(first.size(), 64u);
  EXPECT_EQ(first, dataset_fingerprint(folder / "d"));
  write_bytes(folder / "d.mask.bin", std::string(9, '\1'));
  const std::string masked = dataset_fingerprint(folder / "d");
  EXPECT_NE(first, masked);
  write_bytes(folder / "d.mask.bin", std::string(9, '\0'));
  EXPECT_NE(masked, dataset_fingerprint(folder / "d"));
}

}  // namespace
}  // namespace reprise
