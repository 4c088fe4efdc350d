#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <random>
#include <thread>

#include "core/file_io.hpp"
#include "core/sha256.hpp"
#include "loss/hdf5_file.hpp"
#include "loss/replay_shard.hpp"
#include "loss/replay_store.hpp"
#include "tests/loss/make_records.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

namespace fs = std::filesystem;

const StoreProvenance kProvenance = {{"seed", "1"}, {"vocab_size", "5000"}};

SampleRecords sample(std::uint64_t id) {
  return random_records(id, 20 + static_cast<std::int64_t>(id % 30), 5000, 60);
}

/// Units of 3 samples, one commit each.
void collect(const fs::path& store, std::int64_t units) {
  ReplayStoreWriter writer(store, 0, kProvenance);
  for (std::int64_t unit = writer.resume_unit(); unit < units; ++unit) {
    for (std::uint64_t s = 0; s < 3; ++s) writer.append(sample(static_cast<std::uint64_t>(unit) * 3 + s));
    writer.commit(unit + 1);
  }
}

class ReplayStoreFaults : public testing::Test {
 protected:
  /// One finished shard of 40 samples, 1,400 tokens, 42,000 ids.
  void make_store() {
    {
      ReplayStoreWriter writer(store(), 0, kProvenance);
      for (std::uint64_t id = 0; id < 40; ++id) writer.append(sample(id));
      writer.commit(1);
    }
    finish_store(store(), kProvenance, 1, "{}");
    bytes_ = read_text_file(shard(), ErrorKind::kData);
  }
  void put(const std::string& bytes) const {
    std::ofstream(shard(), std::ios::binary | std::ios::trunc).write(bytes.data(), static_cast<long>(bytes.size()));
  }
  /// Reads every sample; the error's message, or nothing.
  [[nodiscard]] std::string damage() const {
    try {
      const ReplayStoreReader reader(store());
      for (std::uint64_t id = 0; id < 40; ++id) EXPECT_TRUE(same_records(reader.read(id), sample(id))) << id;
    } catch (const Error& error) {
      EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(ErrorKind::kData)) << error.what();
      EXPECT_NE(std::string(error.what()).find("shard-r0000-000000.h5"), std::string::npos) << error.what();
      return error.what();
    }
    return {};
  }
  /// Where in the shard's file a chunk of a dataset lies.
  [[nodiscard]] std::size_t chunk_offset(const char* dataset_name, hsize_t chunk) const {
    const hid_t file = H5Fopen(shard().c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
    const hid_t dataset = H5Dopen2(file, dataset_name, H5P_DEFAULT), space = H5Dget_space(dataset);
    hsize_t start = 0, bytes = 0;
    unsigned int filters = 0;
    haddr_t offset = 0;
    EXPECT_GE(H5Dget_chunk_info(dataset, space, chunk, &start, &filters, &offset, &bytes), 0);
    EXPECT_EQ(start, chunk * kHdf5ChunkElements);
    EXPECT_GT(bytes, 1000u);
    H5Sclose(space);
    H5Dclose(dataset);
    H5Fclose(file);
    return offset;
  }
  [[nodiscard]] fs::path store() const { return folder_ / "store"; }
  [[nodiscard]] fs::path shard() const { return store() / "shard-r0000-000000.h5"; }

  TemporaryFolder folder_;
  std::string bytes_;
};

TEST_F(ReplayStoreFaults, EveryTruncationIsFound) {
  make_store();
  std::mt19937_64 random(1);
  for (int trial = 0; trial < 60; ++trial) {
    put(bytes_.substr(0, random() % bytes_.size()));
    ASSERT_NE(damage(), "");
    ASSERT_EQ(verify_store(store()).size(), 1u);
  }
  fs::remove(shard());
  EXPECT_NE(damage().find("no such file"), std::string::npos);
}

TEST_F(ReplayStoreFaults, EveryFlippedBitIsFoundOrWithoutEffect) {
  make_store();
  std::mt19937_64 random(2);
  int found = 0, named = 0;
  for (int trial = 0; trial < 300; ++trial) {
    std::string flipped = bytes_;
    char& byte = flipped[random() % flipped.size()];
    byte = static_cast<char>(byte ^ (1 << random() % 8));
    put(flipped);
    const std::string message = damage();  // records that differ without an error fail the test
    found += message.empty() ? 0 : 1;
    named += message.find("dataset ") != std::string::npos && message.find("sample ") != std::string::npos ? 1 : 0;
    ASSERT_EQ(verify_store(store()).size(), 1u);  // the hash knows even those without effect
  }
  EXPECT_GT(found, 180);  // the rest of the file is room that HDF5 left
  EXPECT_GT(named, 180);
}

TEST_F(ReplayStoreFaults, DamageIsGivenADatasetAndASample) {
  {  // three chunks of ids, so that the place is known to a third
    ReplayStoreWriter writer(store(), 0, kProvenance);
    for (std::uint64_t id = 0; id < 150; ++id) writer.append(random_records(id, 30, 5000, 80));
    writer.commit(1);
  }
  finish_store(store(), kProvenance, 1, "{}");
  std::string bytes = read_text_file(shard(), ErrorKind::kData);
  char& byte = bytes[chunk_offset("gap", 2) + 1000];
  byte = static_cast<char>(~byte);
  put(bytes);
  const ReplayStoreReader reader(store());
  std::int64_t ids = 0;
  std::uint64_t first = 0;
  while ((ids += static_cast<std::int64_t>(random_records(first, 30, 5000, 80).ids.size())) <= 2 * kHdf5ChunkElements) {
    ++first;
  }
  expect_error(ErrorKind::kData,
               {"shard-r0000-000000.h5", "dataset gap", fmt::format("element {}", 2 * kHdf5ChunkElements),
                fmt::format("sample {}", first)},
               [&] { (void)reader.read(0); });
}

TEST_F(ReplayStoreFaults, TextFilesThatAreDamaged) {
  make_store();
  const fs::path manifest = store() / "manifest.json";
  const std::string text = read_text_file(manifest, ErrorKind::kData);
  const auto refused = [&](const std::string& from, const std::string& to, const std::string& part) {
    std::string changed = text;
    const auto at = changed.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_file_atomically(manifest, changed.replace(at, from.size(), to));
    expect_error(ErrorKind::kData, {part}, [&] {
      const ReplayStoreReader reader(store());
      (void)reader.read(3);
    });
    EXPECT_FALSE(verify_store(store()).empty());
  };
  refused("\"1.0\"", "\"2.0\"", "format version 2.0, this program reads version 1");
  refused("\"1.0\"", "\"one\"", "not of the form 1.0");
  refused("\"reprise-store\"", "\"other\"", "not of a replay store");
  refused("shard-r0000-000000.h5", "shard-/../../etc.h5", "no name of a shard");
  refused("shard-r0000-000000.h5", "/etc/passwd", "no name of a shard");
  refused("shard-r0000-000000.h5", "shard-r0000-000009.h5", "no such file");
  refused("\"5000\"", "\"many\"", "vocab_size");
  refused("\"5000\"", "\"10\"", "vocabulary of 10");
  refused("\"file\"", "\"fill\"", "\"file\" is missing");
  refused("\"samples\": 40,\n   \"tokens\"", "\"samples\": 41,\n   \"tokens\"", "the manifest says 41");
  refused("{", "{{", "not valid JSON");
  write_file_atomically(manifest, text);
  EXPECT_TRUE(verify_store(store()).empty());
  write_file_atomically(store() / "journal-r0000.jsonl", "{}\n");
  EXPECT_FALSE(verify_store(store()).empty());
  expect_error(ErrorKind::kData, {"journal-r0000.jsonl, line 1", "format"},
               [&] { ReplayStoreWriter(store(), 0, kProvenance); });
  std::ofstream(store() / "shard-r0000-000007.h5.part") << "left";
  EXPECT_EQ(verify_store(store()).size(), 3u);
}

TEST_F(ReplayStoreFaults, KilledAtAnyTimeACollectionGoesOn) {
  collect(folder_ / "whole", 24);
  finish_store(folder_ / "whole", kProvenance, 1, "{}");
  std::mt19937_64 random(3);
  int kills = 0;
  for (bool done = false; !done;) {
    const pid_t child = ::fork();
    if (child == 0) {
      collect(store(), 24);
      ::_exit(0);
    }
    ASSERT_GT(child, 0);
    if (kills < 12) std::this_thread::sleep_for(std::chrono::microseconds(1000 + random() % 60000));
    if (kills < 12) ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    kills += WIFSIGNALED(status) ? 1 : 0;
    done = WIFEXITED(status);
    ASSERT_TRUE(!done || WEXITSTATUS(status) == 0);
  }
  EXPECT_GT(kills, 0);
  finish_store(store(), kProvenance, 1, "{}");
  EXPECT_EQ(verify_store(store()), std::vector<std::string>{});
  for (const auto& entry : fs::directory_iterator(folder_ / "whole")) {
    const std::string name = entry.path().filename().string();
    EXPECT_EQ(sha256_file(store() / name, ErrorKind::kData), sha256_file(entry.path(), ErrorKind::kData)) << name;
  }
}

TEST_F(ReplayStoreFaults, FullDisk) {
  // A limit on the size of files stands for a full disk: the write fails in the same place. The process must end in
  // good order, at-exit handlers included.
  const auto fill = [&] {
    struct rlimit limit {};
    ::getrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_IGN);
    try {
      ReplayStoreWriter writer(store(), 0, kProvenance);
      limit.rlim_cur = 20000;
      ::setrlimit(RLIMIT_FSIZE, &limit);
      for (std::uint64_t id = 0; id < 40; ++id) writer.append(sample(id));
      writer.commit(1);
    } catch (const Error& error) {
      fmt::print(stderr, "{}\n", error.what());
      std::exit(error.exit_code());
    }
    std::exit(0);
  };
  EXPECT_EXIT(fill(), testing::ExitedWithCode(8), "shard-r0000-000000.h5.part: cannot write");
  EXPECT_FALSE(fs::exists(store() / "shard-r0000-000000.h5.part"));
  collect(store(), 2);  // and when there is room again, it goes on
  finish_store(store(), kProvenance, 1, "{}");
  EXPECT_EQ(ReplayStoreReader(store()).sample_ids().size(), 6u);
}

TEST_F(ReplayStoreFaults, FolderThatCannotBeMade) {
  write_file_atomically(folder_ / "file", "text");
  expect_error(ErrorKind::kDisk, {"file/store", "cannot make the folder"},
               [&] { ReplayStoreWriter(folder_ / "file" / "store", 0, kProvenance); });
}

}  // namespace
}  // namespace reprise
