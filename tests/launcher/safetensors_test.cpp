#include "launcher/safetensors.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "core/dtype.hpp"
#include "core/half.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

void write_raw(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

std::string length_prefix(std::uint64_t length) {
  std::string text(8, '\0');
  std::memcpy(text.data(), &length, 8);
  return text;
}

std::string file_bytes(const std::string& header, std::size_t buffer_bytes) {
  return length_prefix(header.size()) + header + std::string(buffer_bytes, '\1');
}

struct Attack {
  const char* name;
  std::string bytes;
  const char* message;
};

void PrintTo(const Attack& attack, std::ostream* out) {
  *out << attack.name;
}

class SafetensorsAttackTest : public testing::TestWithParam<Attack> {};

TEST_P(SafetensorsAttackTest, IsRefusedByName) {
  const TemporaryFolder folder;
  const auto path = folder / "m.safetensors";
  write_raw(path, GetParam().bytes);
  for (const ErrorKind kind : {ErrorKind::kUsage, ErrorKind::kCheckpoint}) {
    expect_error(kind, {"m.safetensors", GetParam().message}, [&] { SafetensorsReader(path, kind); });
  }
}

const char* const kTwoTensors =
    R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[%]}})";

std::string two_tensors(const std::string& offsets) {
  std::string header = kTwoTensors;
  return header.replace(header.find('%'), 1, offsets);
}

std::string one_tensor(const std::string& fields) {
  return R"({"a":{)" + fields + "}}";
}

INSTANTIATE_TEST_SUITE_P(
    All, SafetensorsAttackTest,
    testing::Values(
        Attack{"empty_file", "", "too few"}, Attack{"short_file", "1234567", "too few"},
        Attack{"length_2_to_63", length_prefix(std::uint64_t{1} << 63) + "{}", "header of 9223372036854775808 bytes"},
        Attack{"length_all_ones", length_prefix(~std::uint64_t{0}) + "{}", "header of 18446744073709551615 bytes"},
        Attack{"length_above_limit", length_prefix(100'000'001) + "{}", "at most 100000000"},
        Attack{"length_beyond_file", length_prefix(64) + "{}", "header of 64 bytes in a file of 10"},
        Attack{"no_header", length_prefix(0), "does not begin with '{'"},
        Attack{"leading_space", file_bytes(" {}", 0), "does not begin with '{'"},
        Attack{"byte_order_mark", file_bytes("\xef\xbb\xbf{}", 0), "does not begin with '{'"},
        Attack{"trailing_text", file_bytes("{} x", 0), "header byte"},
        Attack{"two_objects", file_bytes("{}{}", 0), "header byte"},
        Attack{"overlap", file_bytes(two_tensors("4,8"), 8), "begins at byte 4"},
        Attack{"same_bytes_twice", file_bytes(two_tensors("0,4"), 8), "begins at byte 0"},
        Attack{"hole", file_bytes(two_tensors("12,16"), 16), "begins at byte 12"},
        Attack{"hole_at_start", file_bytes(one_tensor(R"("dtype":"U8","shape":[1],"data_offsets":[1,2])"), 2),
               "begins at byte 1"},
        Attack{"trailing_bytes", file_bytes(two_tensors("8,12"), 13), "end at byte 12 of a buffer of 13"},
        Attack{"trailing_bytes_without_tensors", file_bytes("{}", 1), "end at byte 0 of a buffer of 1"},
        Attack{"truncated", file_bytes(two_tensors("8,12"), 11), "of a buffer of 11"},
        Attack{"end_before_begin",
               file_bytes(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                          R"("b":{"dtype":"U8","shape":[0],"data_offsets":[2,1]}})",
                          2),
               "bytes [2, 1) of a buffer of 2"},
        Attack{"duplicate_tensor",
               file_bytes(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                          R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                          1),
               "\"a\" appears twice"},
        Attack{"duplicate_metadata", file_bytes(R"({"__metadata__":{},"__metadata__":{}})", 0), "appears twice"},
        Attack{"duplicate_metadata_key", file_bytes(R"({"__metadata__":{"k":"1","k":"2"}})", 0), "\"k\" appears twice"},
        Attack{"duplicate_dtype",
               file_bytes(one_tensor(R"("dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1])"), 1),
               "dtype twice"},
        Attack{"duplicate_shape",
               file_bytes(one_tensor(R"("dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1])"), 1),
               "shape twice"},
        Attack{"offset_2_to_64",
               file_bytes(one_tensor(R"("dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616])"), 1),
               "18446744073709551616"},
        Attack{"offset_2_to_63",
               file_bytes(one_tensor(R"("dtype":"U8","shape":[1],"data_offsets":[0,9223372036854775808])"), 1),
               "9223372036854775808"},
        Attack{"negative_offset", file_bytes(one_tensor(R"("dtype":"U8","shape":[1],"data_offsets":[-1,0])"), 1),
               "cannot be -1"},
        Attack{"fractional_shape", file_bytes(one_tensor(R"("dtype":"U8","shape":[1.0],"data_offsets":[0,1])"), 1),
               "cannot be 1.0"},
        Attack{"string_shape", file_bytes(one_tensor(R"("dtype":"U8","shape":["1"],"data_offsets":[0,1])"), 1),
               "cannot be a string"},
        Attack{"boolean_shape", file_bytes(one_tensor(R"("dtype":"U8","shape":[true],"data_offsets":[0,1])"), 1),
               "cannot be true"},
        Attack{"negative_shape", file_bytes(one_tensor(R"("dtype":"U8","shape":[-1],"data_offsets":[0,1])"), 1),
               "cannot be -1"},
        Attack{"nested_shape", file_bytes(one_tensor(R"("dtype":"U8","shape":[[1]],"data_offsets":[0,1])"), 1),
               "cannot be an array"},
        Attack{"shape_overflow",
               file_bytes(one_tensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0),
               "overflows"},
        Attack{"shape_overflow_before_zero",
               file_bytes(one_tensor(R"("dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0])"), 0),
               "overflows"},
        Attack{"shape_overflow_behind_zero",
               file_bytes(one_tensor(R"("dtype":"F32","shape":[0,4294967296,4294967296],"data_offsets":[0,0])"), 0),
               "overflows"},
        Attack{"wrong_size", file_bytes(one_tensor(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4),
               "4 bytes for shape [2] of F32, which needs 8"},
        Attack{"three_offsets", file_bytes(one_tensor(R"("dtype":"U8","shape":[1],"data_offsets":[0,1,1])"), 1),
               "must be 2 numbers"},
        Attack{"unknown_dtype", file_bytes(one_tensor(R"("dtype":"F4","shape":[1],"data_offsets":[0,1])"), 1),
               "\"F4\" is not supported"},
        Attack{"unknown_field", file_bytes(one_tensor(R"("dtype":"U8","shape":[1],"data_offsets":[0,1],"x":"y")"), 1),
               "\"x\""},
        Attack{"missing_field", file_bytes(one_tensor(R"("dtype":"U8","shape":[1])"), 1), "lacks"},
        Attack{"tensor_is_number", file_bytes(R"({"a":1})", 0), "must have an object"},
        Attack{"tensor_is_array", file_bytes(R"({"a":[]})", 0), "must have an object"},
        Attack{"header_is_array", file_bytes("{\"a\":[[", 0), "must have an object"},
        Attack{"metadata_number", file_bytes(R"({"__metadata__":{"k":1}})", 0), "a number"},
        Attack{"metadata_object", file_bytes(R"({"__metadata__":{"k":{}}})", 0), "an object inside"},
        Attack{"deep_objects",
               file_bytes(
                   [] {
                     std::string text;
                     for (int i = 0; i < 1'000'000; ++i) text += "{\"a\":";
                     return text;
                   }(),
                   0),
               "an object inside"},
        Attack{"deep_arrays", file_bytes(R"({"a":{"shape":)" + std::string(1'000'000, '['), 0), "cannot be an array"},
        Attack{"bad_utf8", file_bytes("{\"\xff\xfe\":{}}", 0), "UTF-8"},
        Attack{"unterminated", file_bytes(R"({"a":{"dtype":"F32)", 0), "header byte"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Safetensors, AcceptsPaddingScalarsAndEmptyTensors) {
  const TemporaryFolder folder;
  const auto path = folder / "m.safetensors";
  write_raw(path,
            file_bytes(R"({"__metadata__":{"format":"pt"},"e":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]},)"
                       R"("s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}     )",
                       4));
  const SafetensorsReader reader(path);
  EXPECT_EQ(reader.metadata().at("format"), "pt");
  EXPECT_EQ(reader.at("e").rows(), 0);
  EXPECT_EQ(reader.at("e").cols(), 3);
  EXPECT_EQ(reader.at("s").rows(), 1);
  EXPECT_EQ(reader.at("s").cols(), 1);
  EXPECT_EQ(reader.find("x"), nullptr);
  expect_error(ErrorKind::kUsage, {"no tensor \"x\""}, [&] { (void)reader.at("x"); });
}

TEST(Safetensors, FileThatIsMissingOrAFolderIsRefused) {
  const TemporaryFolder folder;
  expect_error(ErrorKind::kUsage, {"absent", "No such file"}, [&] { SafetensorsReader(folder / "absent"); });
  expect_error(ErrorKind::kUsage, {"not a regular file"}, [&] { SafetensorsReader(folder.path()); });
}

/// [rows, cols] with a value of its own in every place.
std::vector<float> numbered(std::int64_t rows, std::int64_t cols) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < rows * cols; ++i) values.push_back(static_cast<float>(i) - 7.0f);
  return values;
}

template <class T>
void check_rectangles(std::int64_t rows, std::int64_t cols, const std::string& dtype) {
  const TemporaryFolder folder;
  const auto values = numbered(rows, cols);
  SafetensorsWriter writer(folder / "m", {{"t", dtype, {rows, cols}}});
  writer.write<float>("t", values);
  writer.finish();
  const SafetensorsReader reader(folder / "m");
  for (const Range r : {Range{0, rows}, Range{1, rows}, Range{rows / 3, rows / 2}, Range{rows, rows}}) {
    for (const Range c : {Range{0, cols}, Range{0, 1}, Range{cols / 4, cols - 1}, Range{2, 2}}) {
      std::vector<T> block(static_cast<std::size_t>(r.size() * c.size()));
      reader.read<T>(reader.at("t"), r, c, {block, r.size(), c.size()});
      for (std::int64_t i = 0; i < r.size(); ++i) {
        for (std::int64_t j = 0; j < c.size(); ++j) {
          const float want = values[static_cast<std::size_t>((r.begin + i) * cols + c.begin + j)];
          ASSERT_EQ(static_cast<float>(block[static_cast<std::size_t>(i * c.size() + j)]), want) << i << " " << j;
        }
      }
    }
  }
}

TEST(Safetensors, RectanglesOfEveryDtypeAreRead) {
  for (const char* dtype : {"F32", "BF16", "F16"}) {
    check_rectangles<float>(12, 10, dtype);  // all values below 256: exact in every dtype
    check_rectangles<BFloat16>(12, 10, dtype);
  }
}

TEST(Safetensors, LargeTensorsAreReadInChunks) {
  check_rectangles<float>(700, 2100, "F32");     // whole rows in chunks, pieces row by row
  check_rectangles<float>(30'000, 50, "F32");    // narrow: blocks of whole rows
  check_rectangles<float>(3, 1'200'000, "F32");  // one row is more than a chunk
}

TEST(Safetensors, WriterIsDeterministicAlignedAndStreams) {
  const TemporaryFolder folder;
  const auto values = numbered(5, 3);
  const std::vector<SafetensorsTensor> tensors = {
      {"b", "BF16", {5, 3}}, {"z", "F32", {5, 3}}, {"a", "F32", {15}}, {"count", "I64", {1}}, {"none", "F32", {0}}};
  const auto write = [&](const std::string& name, bool backwards) {
    SafetensorsWriter writer(folder / name, tensors, {{"format", "pt"}, {"quote", "\"\n"}});
    const VectorView<const float> view(values);
    const std::int64_t count = 42;
    if (backwards) {
      writer.write_bytes("count", &count, 8);
      for (std::int64_t i = 0; i < 15; ++i) writer.write<float>("a", view.slice(i, 1));
    } else {
      writer.write<float>("a", view);
      writer.write_bytes("count", &count, 8);
    }
    writer.write<float>("z", view);
    writer.write<float>("b", view);
    EXPECT_FALSE(std::filesystem::exists(folder / name));
    writer.finish();
    EXPECT_FALSE(std::filesystem::exists(folder / (name + ".part")));
    return read_text_file(folder / name, ErrorKind::kUsage);
  };
  const std::string first = write("first", false);
  EXPECT_EQ(first, write("second", true));
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, first.data(), 8);
  EXPECT_EQ(header_bytes % 8, 0u);

  const SafetensorsReader reader(folder / "first");
  std::vector<std::string> order;
  for (const auto& entry : reader.entries()) order.push_back(entry.name);
  EXPECT_EQ(order, (std::vector<std::string>{"count", "a", "none", "z", "b"}));
  EXPECT_EQ(reader.metadata().at("quote"), "\"\n");
  std::int64_t count = 0;
  reader.read_bytes(reader.at("count"), 0, 8, &count);
  EXPECT_EQ(count, 42);
  float ignored = 0;
  expect_error(ErrorKind::kUsage, {"\"count\"", "I64", "F32, BF16 or F16"}, [&] {
    reader.read<float>(reader.at("count"), {&ignored, 1, 1});
  });
}

TEST(Safetensors, UnfinishedFilesLeaveNothing) {
  const TemporaryFolder folder;
  {
    SafetensorsWriter writer(folder / "m", {{"a", "F32", {2}}});
    const std::vector<float> one = {1.0f};
    writer.write<float>("a", one);
    expect_error(ErrorKind::kInternal, {"tensor a", "4 of 8 bytes"}, [&] { writer.finish(); });
    const std::vector<float> two = {1.0f, 2.0f};
    expect_error(ErrorKind::kInternal, {"4 bytes more"}, [&] { writer.write<float>("a", two); });
    expect_error(ErrorKind::kInternal, {"tensor x was not declared"}, [&] { writer.write<float>("x", one); });
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  expect_error(ErrorKind::kDisk, {"cannot create"}, [&] { SafetensorsWriter(folder / "no" / "m", {}); });
}

TEST(Safetensors, FullDiskIsAnErrorOfTheDisk) {
  // /dev/full takes every open and fails every write with ENOSPC.
  const TemporaryFolder folder;
  std::filesystem::create_symlink("/dev/full", folder / "m.part");
  expect_error(ErrorKind::kDisk, {"cannot write", "No space left"}, [&] { SafetensorsWriter(folder / "m", {}); });
}

TEST(Half, EveryValueSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    ASSERT_EQ(float_to_half(half_to_float(half)), half) << bits;
  }
  EXPECT_EQ(half_to_float(0x3c00), 1.0f);
  EXPECT_EQ(half_to_float(0x0001), 0x1.0p-24f);
  EXPECT_EQ(half_to_float(0x7bff), 65504.0f);
  EXPECT_EQ(half_to_float(0xfc00), -std::numeric_limits<float>::infinity());
}

TEST(Half, RoundsToNearestEven) {
  // Between each two neighbours: just below the middle, the middle and just above.
  for (std::uint16_t low = 0; low < 0x7bff; ++low) {
    const auto high = static_cast<std::uint16_t>(low + 1);
    const float middle = (half_to_float(low) + half_to_float(high)) / 2;  // exact: 12 significant bits
    ASSERT_EQ(float_to_half(middle), low % 2 == 0 ? low : high) << low;
    ASSERT_EQ(float_to_half(std::nextafter(middle, 0.0f)), low) << low;
    ASSERT_EQ(float_to_half(-std::nextafter(middle, 1e9f)), high | 0x8000) << low;
  }
  EXPECT_EQ(float_to_half(65519.99f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_half(1e38f), 0x7c00);
  EXPECT_TRUE(std::isnan(half_to_float(float_to_half(std::numeric_limits<float>::quiet_NaN()))));
}

}  // namespace
}  // namespace reprise
