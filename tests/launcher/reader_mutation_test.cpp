// Sound files with random bytes changed, cut, doubled or inserted: every reader either succeeds or throws Error, and
// never crashes, hangs or asks for more memory than the file justifies. Run under ASan for the full proof.
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "launcher/hugging_face.hpp"
#include "launcher/indexed_dataset.hpp"
#include "launcher/safetensors.hpp"
#include "tests/support/make_dataset.hpp"
#include "tests/support/make_model_folder.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

std::string mutate(std::string bytes, std::mt19937_64& generator) {
  constexpr std::string_view kTokens[] = {"18446744073709551616",
                                          "9223372036854775807",
                                          "-1",
                                          "[",
                                          "{",
                                          "\"",
                                          "1e999",
                                          "null",
                                          "0",
                                          ",",
                                          "\\u0000",
                                          "\xff"};
  const auto place = [&] { return bytes.empty() ? 0 : generator() % bytes.size(); };
  for (std::uint64_t change = 0, changes = 1 + generator() % 3; change < changes; ++change) {
    switch (generator() % 6) {
      case 0: bytes.resize(place()); break;
      case 1: bytes.insert(place(), bytes.substr(place(), generator() % 40)); break;
      case 2: bytes.erase(place(), 1 + generator() % 9); break;
      case 3: bytes.insert(place(), kTokens[generator() % std::size(kTokens)]); break;
      case 4: bytes += std::string(1 + generator() % 9, '\0'); break;
      default:
        if (!bytes.empty()) bytes[place()] = static_cast<char>(generator());
    }
  }
  return bytes;
}

/// Runs `read` on 1,500 mutants of a file and expects some of them to be refused.
void fuzz(const std::filesystem::path& path, std::uint64_t seed, const std::function<void()>& read) {
  read();  // the sound file
  const std::string sound = read_text_file(path, ErrorKind::kData);
  std::mt19937_64 generator(seed);
  int refused = 0;
  for (int i = 0; i < 1500; ++i) {
    write_bytes(path, mutate(sound, generator));
    try {
      read();
    } catch (const Error& error) {
      EXPECT_NE(error.kind(), ErrorKind::kInternal) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

TEST(ReaderMutation, Safetensors) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder / "m";
  SafetensorsWriter writer(path, {{"a", "F32", {2, 3}}, {"b", "BF16", {4}}, {"n", "I64", {1}}}, {{"format", "pt"}});
  writer.write<float>("a", std::vector<float>(6, 1.0f));
  writer.write<float>("b", std::vector<float>(4, 1.0f));
  writer.write_bytes("n", "12345678", 8);
  writer.finish();
  fuzz(path, 1, [&] {
    const SafetensorsReader reader(path);
    for (const SafetensorsEntry& entry : reader.entries()) {
      ASSERT_LE(entry.bytes(), 200);
      if (entry.dtype != "F32" && entry.dtype != "BF16") continue;
      std::vector<float> values(static_cast<std::size_t>(entry.rows() * entry.cols()));
      reader.read<float>(entry, {values, entry.rows(), entry.cols()});
    }
  });
}

TEST(ReaderMutation, IndexOfADataset) {
  const TemporaryFolder folder;
  make_dataset(folder / "d", {{1, 2, 3}, {}, {4, 5}}, {.masks = {{0, 1, 1}, {}, {0, 1}}, .sequence_tokens = 2});
  for (const char* suffix : {".idx", ".bin", ".mask.bin"}) {
    const TemporaryFolder own;
    for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
      std::filesystem::copy_file(entry.path(), own.path() / entry.path().filename());
    }
    fuzz(own / (std::string("d") + suffix), 2, [&] {
      const IndexedDataset dataset(own / "d", 100);
      for (std::int64_t d = 0; d < dataset.size(); ++d) (void)dataset.read(d);
    });
  }
}

TEST(ReaderMutation, ConfigAndIndexOfAModel) {
  const TemporaryFolder folder;
  make_model_folder(folder.path(), tiny_decoder_config(), {.tensors_per_file = 9});
  fuzz(folder / "config.json", 3, [&] { (void)read_decoder_config(folder.path()); });
  fuzz(folder / "model.safetensors.index.json", 4, [&] { (void)WeightFiles(folder.path()).names(); });
}

}  // namespace
}  // namespace reprise
