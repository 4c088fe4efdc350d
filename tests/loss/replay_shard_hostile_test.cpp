#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/resource.h>

#include <fstream>
#include <limits>

#include "loss/hdf5_file.hpp"
#include "loss/replay_shard.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

/// A shard of two samples {positions 0, 3} and {position 1}, dataset by dataset, to be written wrongly.
struct Parts {
  std::string format = "reprise-store", version = "1.0";
  std::vector<std::uint64_t> sample_id = {4, 9}, sample_hash = {1, 2}, token_ptr = {0, 2, 3}, id_ptr = {0, 2, 3, 6};
  std::vector<std::uint32_t> position = {0, 3, 1}, gold = {5, 8, 70}, gap = {5, 1, 8, 60, 10, 20};
  std::vector<std::uint8_t> flags = {0, 1, 0};
  std::vector<float> mass = {0.9f, 0.8f, 0.7f}, confidence = {0.5f, 0.4f, 0.3f};
  std::string missing;
};

class ReplayShardHostile : public testing::Test {
 protected:
  [[nodiscard]] std::filesystem::path path() const { return folder_ / "shard.h5"; }
  void write(const Parts& parts) const {
    Hdf5Image image;
    image.write_attribute("format", parts.format);
    image.write_attribute("version", parts.version);
    const auto put = [&](const char* name, const auto& values) {
      if (name != parts.missing) image.write(name, std::span(values));
    };
    put("sample_id", parts.sample_id);
    put("sample_hash", parts.sample_hash);
    put("token_ptr", parts.token_ptr);
    put("position", parts.position);
    put("gold", parts.gold);
    put("flags", parts.flags);
    put("mass", parts.mass);
    put("confidence", parts.confidence);
    put("id_ptr", parts.id_ptr);
    put("gap", parts.gap);
    const std::string bytes = image.finish();
    std::ofstream(path(), std::ios::binary | std::ios::trunc).write(bytes.data(), static_cast<long>(bytes.size()));
  }
  void expect_refused(const std::vector<std::string>& parts) const {
    std::vector<std::string> all = parts;
    all.push_back(path().string());
    expect_error(ErrorKind::kData, all, [&] { (void)ReplayShard::from_hdf5(path(), 100); });
  }
  template <class Change>
  void refused(const std::vector<std::string>& message, const Change& change) const {
    Parts parts;
    change(parts);
    write(parts);
    expect_refused(message);
  }
  /// Writes a sound file, then replaces dataset `name` by one that the HDF5 library makes as it is told.
  void replace(const char* name, hid_t type, hsize_t size, hid_t creation) const {
    write({});
    const hid_t file = H5Fopen(path().c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
    ASSERT_GE(file, 0);
    ASSERT_GE(H5Ldelete(file, name, H5P_DEFAULT), 0);
    const hid_t space = H5Screate_simple(1, &size, nullptr);
    const hid_t dataset = H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    EXPECT_GE(dataset, 0);
    H5Dclose(dataset);
    H5Sclose(space);
    H5Fclose(file);
  }

  TemporaryFolder folder_;
};

TEST_F(ReplayShardHostile, TheSoundFileIsRead) {
  write({});
  const ReplayShard shard = ReplayShard::from_hdf5(path(), 100);
  EXPECT_EQ(shard.sample(0).ids, (std::vector<std::uint32_t>{5, 6, 8}));
  EXPECT_EQ(shard.sample(1).ids, (std::vector<std::uint32_t>{60, 70, 90}));
  EXPECT_EQ(shard.sample(0).id_begin, (std::vector<std::int64_t>{0, 2, 3}));
  EXPECT_EQ(read_sample_ids(path()), (std::vector<std::uint64_t>{4, 9}));
}

TEST_F(ReplayShardHostile, WrongValues) {
  refused({"gap", "sample 9", "id 101 in a vocabulary of 100"}, [](Parts& p) { p.gap[5] = 31; });
  refused({"gap", "sample 4", "id 5 behind 5"}, [](Parts& p) { p.gap[1] = 0; });
  refused({"gap", "sample 9", "behind"}, [](Parts& p) { p.gap[4] = p.gap[5] = 0xffffffff; });  // wraps
  refused({"gap", "sample 9", "in a vocabulary"}, [](Parts& p) { p.gap[5] = 0xffffffff; });
  refused({"gold", "sample 9", "gold 71 is not in its set"}, [](Parts& p) { p.gold[2] = 71; });
  refused({"position", "sample 4", "position 0 behind 0"}, [](Parts& p) { p.position[1] = 0; });
  refused({"mass", "sample 4"}, [](Parts& p) { p.mass[1] = 2.0f; });
  refused({"mass", "sample 4"}, [](Parts& p) { p.mass[1] = std::numeric_limits<float>::quiet_NaN(); });
  refused({"confidence", "sample 9"}, [](Parts& p) { p.confidence[2] = -1.0f; });
  refused({"id_ptr", "sample 4", "is empty"}, [](Parts& p) { p.id_ptr[1] = 0; });
}

TEST_F(ReplayShardHostile, CountsThatDoNotFit) {
  refused({"id_ptr", "must rise from 0 to 6", "ends with 7"}, [](Parts& p) { p.id_ptr[3] = 7; });
  refused({"id_ptr", "falls at element 1"}, [](Parts& p) { p.id_ptr[1] = 5; });
  refused({"id_ptr", "begins with 1"}, [](Parts& p) { p.id_ptr[0] = 1; });
  refused({"id_ptr", "ends with 18446744073709551615"}, [](Parts& p) { p.id_ptr[3] = ~std::uint64_t{0}; });
  refused({"token_ptr", "must rise from 0 to 3"}, [](Parts& p) { p.token_ptr[2] = 2; });
  refused({"token_ptr", "falls"}, [](Parts& p) { p.token_ptr[1] = 1000; });
  refused({"token_ptr", "4 elements, 3 expected"}, [](Parts& p) { p.token_ptr.push_back(3); });
  refused({"sample_hash", "1 elements, 2 expected"}, [](Parts& p) { p.sample_hash.pop_back(); });
  refused({"gold", "2 elements, 3 expected"}, [](Parts& p) { p.gold.pop_back(); });
  refused({"flags", "4 elements, 3 expected"}, [](Parts& p) { p.flags.push_back(0); });
  refused({"id_ptr", "must rise from 0 to 5"}, [](Parts& p) { p.gap.pop_back(); });
}

TEST_F(ReplayShardHostile, NotAShard) {
  refused({"not a shard"}, [](Parts& p) { p.format = "other"; });
  refused({"version \"2.0\""}, [](Parts& p) { p.version = "2.0"; });
  for (const char* name :
       {"sample_id", "sample_hash", "token_ptr", "id_ptr", "position", "gold", "flags", "mass", "confidence", "gap"}) {
    refused({name, "is missing"}, [&](Parts& p) { p.missing = name; });
  }
  std::ofstream(path(), std::ios::trunc) << "not HDF5";
  expect_refused({"not an HDF5 file"});
  std::ofstream(path(), std::ios::trunc).close();
  expect_refused({"not an HDF5 file"});
}

TEST_F(ReplayShardHostile, OddDatasets) {
  const auto with_chunks = [](hsize_t chunk) {
    const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(creation, 1, &chunk);
    return creation;
  };
  replace("position", H5T_STD_U64LE, 3, with_chunks(3));
  expect_refused({"position", "is not of uint32"});
  replace("position", H5T_STD_I32LE, 3, with_chunks(3));
  expect_refused({"position", "is not of uint32"});
  replace("position", H5T_STD_U32BE, 3, with_chunks(3));
  expect_refused({"position", "is not of uint32"});
  replace("position", H5Tvlen_create(H5T_STD_U32LE), 3, with_chunks(3));
  expect_refused({"position", "is not of uint32"});
  replace("mass", H5T_IEEE_F64LE, 3, with_chunks(3));
  expect_refused({"mass", "is not of float32"});
  replace("gap", H5T_STD_U32LE, 6, H5P_DEFAULT);
  expect_refused({"gap", "is not stored in chunks"});
  replace("gap", H5T_STD_U32LE, 6, with_chunks(3));  // never written: would read as zeros
  expect_refused({"gap", "lacks chunks"});
  const hid_t external = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_external(external, "/etc/passwd", 0, 24);
  replace("gap", H5T_STD_U32LE, 6, external);
  expect_refused({"gap", "is not stored in chunks"});
  const hid_t scaled = with_chunks(6);
  H5Pset_nbit(scaled);
  replace("gap", H5T_STD_U32LE, 6, scaled);
  expect_refused({"gap", "has a filter"});
}

TEST_F(ReplayShardHostile, LinksThatLeadAway) {
  write({});
  const hid_t file = H5Fopen(path().c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  H5Ldelete(file, "gap", H5P_DEFAULT);
  H5Lcreate_external("/etc/other.h5", "/gap", file, "gap", H5P_DEFAULT, H5P_DEFAULT);
  H5Ldelete(file, "gold", H5P_DEFAULT);
  H5Gclose(H5Gcreate2(file, "gold", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  H5Fclose(file);
  expect_refused({"gap", "is missing"});
  write({});
  const hid_t again = H5Fopen(path().c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  H5Ldelete(again, "gold", H5P_DEFAULT);
  H5Gclose(H5Gcreate2(again, "gold", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  H5Fclose(again);
  expect_refused({"gold", "not a dataset"});
}

TEST_F(ReplayShardHostile, HugeClaimsCostNoMemory) {
  hsize_t chunk = hsize_t{1} << 28;
  const hid_t huge_chunks = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(huge_chunks, 1, &chunk);
  const hid_t chunks = H5Pcreate(H5P_DATASET_CREATE);
  chunk = 1 << 16;
  H5Pset_chunk(chunks, 1, &chunk);
  struct rusage before {
  }, after{};
  ::getrusage(RUSAGE_SELF, &before);
  for (const char* name : {"sample_id", "position", "gap"}) {
    const hid_t type = std::string(name) == "sample_id" ? H5T_STD_U64LE : H5T_STD_U32LE;
    for (const hsize_t size : {hsize_t{1} << 32, hsize_t{1} << 50}) {
      replace(name, type, size, chunks);
      expect_refused({name, "more than the file can hold"});
    }
    replace(name, type, hsize_t{1} << 40, huge_chunks);
    expect_refused({name});
  }
  ::getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 64 * 1024);  // KiB
}

}  // namespace
}  // namespace reprise
