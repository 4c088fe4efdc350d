#include "launcher/sha256_tree.hpp"

#include <gtest/gtest.h>

#include "core/file_io.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

TEST(Sha256Tree, IsTheHashOfChunkDigests) {
  const TemporaryFolder folder;
  const std::string first(static_cast<std::size_t>(kHashChunkBytes), 'a'), second = "tail";
  write_file_atomically(folder / "two", first + second);
  write_file_atomically(folder / "none", "");
  Sha256 tree;
  for (const std::string& chunk : {first, second}) {
    Sha256 hash;
    hash.update(chunk);
    const Sha256Digest digest = hash.digest();
    tree.update(digest.data(), digest.size());
  }
  const auto hashes = sha256_tree({folder / "two", folder / "none"}, ErrorKind::kUsage);
  EXPECT_EQ(hashes, (std::vector<std::string>{to_hex(tree.digest()), sha256_hex("")}));
}

}  // namespace
}  // namespace reprise
