#include "launcher/hash_cache.hpp"

#include <gtest/gtest.h>

#include <chrono>

#include "core/file_io.hpp"
#include "launcher/sha256_tree.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

class HashCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    write(folder_ / "a", "first");
    write(folder_ / "b", "second");
  }
  /// Writes a file as if an hour (or `age`) ago.
  static void write(const std::filesystem::path& path, const std::string& text,
                    std::chrono::milliseconds age = std::chrono::hours(1)) {
    write_file_atomically(path, text);
    std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() - age);
  }
  std::vector<std::string> cached(Communicator* world = nullptr) const {
    return cached_sha256_tree({folder_ / "a", folder_ / "b"}, ErrorKind::kUsage, folder_ / "cache.json", world);
  }
  std::vector<std::string> plain() const { return sha256_tree({folder_ / "a", folder_ / "b"}, ErrorKind::kUsage); }
  /// Changes a file but not its size or time: only a reader of the cache still sees the old hash.
  void change_unseen(const std::string& name, const std::string& text) const {
    const auto time = std::filesystem::last_write_time(folder_ / name);
    write_file_atomically(folder_ / name, text);
    std::filesystem::last_write_time(folder_ / name, time);
  }

  TemporaryFolder folder_;
};

TEST_F(HashCacheTest, RemembersByPathSizeAndTime) {
  const auto first = cached();
  EXPECT_EQ(first, plain());
  change_unseen("a", "FIRST");
  EXPECT_EQ(cached(), first) << "the cache was not used";
  write(folder_ / "a", "FIRST", std::chrono::minutes(30));
  EXPECT_EQ(cached(), plain()) << "another time was not noticed";
  write(folder_ / "b", "longer than before");
  EXPECT_EQ(cached(), plain()) << "another size was not noticed";
}

TEST_F(HashCacheTest, FilesThatHaveJustChangedAreNotRemembered) {
  write(folder_ / "a", "fresh", std::chrono::milliseconds(0));
  (void)cached();
  change_unseen("a", "FRESH");
  EXPECT_EQ(cached(), plain());
}

TEST_F(HashCacheTest, ADamagedOrUnwritableCacheIsNoError) {
  for (const char* text : {"", "[]", "{", R"({"x": 1})"}) {
    write_file_atomically(folder_ / "cache.json", text);
    EXPECT_EQ(cached(), plain());
  }
  const auto hashes = cached_sha256_tree({folder_ / "a"}, ErrorKind::kUsage, folder_ / "no" / "cache.json");
  EXPECT_EQ(hashes.front(), plain().front());
}

TEST_F(HashCacheTest, EveryRankGetsTheAnswerOfTheFirst) {
  const auto expected = plain();
  for (int run = 0; run < 2; ++run) {  // the second time from the cache
    run_ranks(3, [&](Communicator& world) {
      const auto hashes = cached(&world);
      if (hashes != expected) fail(ErrorKind::kInternal, "rank {} differs", world.rank());
    });
    change_unseen("b", "SECOND");
  }
}

}  // namespace
}  // namespace reprise
