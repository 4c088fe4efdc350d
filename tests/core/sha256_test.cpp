#include "core/sha256.hpp"

#include <gtest/gtest.h>

#include "core/file_io.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

TEST(Sha256, KnownVectors) {  // FIPS 180-4 examples
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256, FileInChunksEqualsTheWholeText) {
  const TemporaryFolder folder;
  const std::string text(static_cast<std::size_t>(kHashChunkBytes) + 5, 'x');
  write_file_atomically(folder / "f", text);
  EXPECT_EQ(sha256_file(folder / "f", ErrorKind::kData), sha256_hex(text));
  expect_error(ErrorKind::kData, {"absent"}, [&] { (void)sha256_file(folder / "absent", ErrorKind::kData); });
}

}  // namespace
}  // namespace reprise
