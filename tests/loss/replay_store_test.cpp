#include "loss/replay_store.hpp"

#include <gtest/gtest.h>

#include <fstream>

#include "core/file_io.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/loss/make_records.hpp"
#include "tests/support/expect_error.hpp"
#include "tests/support/temporary_folder.hpp"

namespace reprise {
namespace {

namespace fs = std::filesystem;

const StoreProvenance kProvenance = {{"model", "abc"}, {"seed", "1"}, {"tau", "0.95"}, {"vocab_size", "5000"}};

class ReplayStoreTest : public testing::Test {
 protected:
  /// Units of 4 samples; odd units go to writer 1 of 2.
  static SampleRecords sample(std::uint64_t id) {
    return random_records(id, static_cast<std::int64_t>(id % 7) * 5, 5000, 60, false);
  }
  static void collect_unit(ReplayStoreWriter& writer, std::int64_t unit) {
    for (std::uint64_t s = 0; s < 4; ++s) writer.append(sample(static_cast<std::uint64_t>(unit) * 4 + s));
  }
  /// From where its journal says up to `units`, committing every second of its units.
  void collect(int index, int num_writers, std::int64_t units) const {
    ReplayStoreWriter writer(store(), index, kProvenance, num_writers);
    std::int64_t done = 0;
    for (std::int64_t unit = writer.resume_unit(); unit < units; ++unit) {
      if (unit % num_writers == index) collect_unit(writer, unit), ++done;
      if (done == 2) writer.commit(unit + 1), done = 0;
    }
    writer.commit(units);
  }
  void expect_whole(std::uint64_t samples) const {
    const ReplayStoreReader reader(store());
    ASSERT_EQ(reader.sample_ids().size(), samples);
    for (std::uint64_t id = 0; id < samples; ++id) {
      ASSERT_TRUE(reader.contains(id));
      EXPECT_TRUE(same_records(reader.read(id), sample(id))) << id;
    }
    EXPECT_EQ(verify_store(store()), std::vector<std::string>{});
  }
  [[nodiscard]] fs::path store() const { return folder_ / "store"; }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(store())) found.push_back(entry.path().filename().string());
    std::sort(found.begin(), found.end());
    return found;
  }

  TemporaryFolder folder_;
};

TEST_F(ReplayStoreTest, RoundTrip) {
  collect(0, 2, 6);
  collect(1, 2, 6);
  finish_store(store(), kProvenance, 2, R"({"tokens": 3})");
  expect_whole(24);
  EXPECT_EQ(names(), (std::vector<std::string>{"journal-r0000.jsonl", "journal-r0001.jsonl", "manifest.json",
                                               "shard-r0000-000000.h5", "shard-r0000-000001.h5",
                                               "shard-r0001-000000.h5", "shard-r0001-000001.h5"}));

  const ReplayStoreReader reader(store());
  const StoreManifest& manifest = reader.manifest();
  EXPECT_EQ(manifest.provenance, kProvenance);
  EXPECT_EQ(manifest.statistics, R"({"tokens":3})");
  EXPECT_EQ(manifest.samples(), 24);
  std::int64_t tokens = 0, ids = 0, bytes = 0;
  for (std::uint64_t id = 0; id < 24; ++id) {
    tokens += sample(id).size();
    ids += static_cast<std::int64_t>(sample(id).ids.size());
  }
  EXPECT_EQ(manifest.tokens(), tokens);
  EXPECT_EQ(manifest.ids(), ids);
  for (const StoreShard& shard : manifest.shards) {
    bytes += static_cast<std::int64_t>(fs::file_size(store() / shard.file));
    std::int64_t visited = 0;
    visit_shard(store(), shard, 5000, [&](const SampleRecords& records) {
      EXPECT_TRUE(same_records(records, sample(records.sample_id)));
      ++visited;
    });
    EXPECT_EQ(visited, shard.samples);
  }
  EXPECT_EQ(manifest.bytes(), bytes);
  EXPECT_FALSE(reader.contains(24));
  expect_error(ErrorKind::kStoreMismatch, {"no sample 24"}, [&] { (void)reader.read(24); });
}

TEST_F(ReplayStoreTest, RanksOfOneProcessWriteAndReadTogether) {
  run_ranks(4, [&](Communicator& world) {
    collect(world.rank(), world.size(), 12);
    world.barrier();
    if (world.rank() == 0) finish_store(store(), kProvenance, world.size(), "{}");
    world.barrier();
    const ReplayStoreReader reader(store());
    for (std::uint64_t id = 0; id < 48; ++id) EXPECT_TRUE(same_records(reader.read(id), sample(id)));
  });
  expect_whole(48);
}

TEST_F(ReplayStoreTest, LogProbabilitiesAndOddSamples) {
  const std::vector<SampleRecords> samples = {
      random_records(7, 3, 128256, 1000, true), random_records(std::uint64_t{3} << 48, 1, 128256, 1, true),
      random_records(5, 0, 10, 1, true), random_records(~std::uint64_t{0}, 2, 0x7fffffff, 40, true)};
  {
    ReplayStoreWriter writer(store(), 0, {{"seed", "1"}});
    for (const SampleRecords& records : samples) writer.append(records);
    writer.commit(1);
  }
  finish_store(store(), {{"seed", "1"}}, 1, "{}");
  const ReplayStoreReader reader(store());
  for (const SampleRecords& records : samples) EXPECT_TRUE(same_records(reader.read(records.sample_id), records));
  EXPECT_EQ(verify_store(store()), std::vector<std::string>{});
}

TEST_F(ReplayStoreTest, EmptyStore) {
  { ReplayStoreWriter(store(), 0, kProvenance).commit(3); }
  finish_store(store(), kProvenance, 1, "{}");
  EXPECT_TRUE(ReplayStoreReader(store()).sample_ids().empty());
  EXPECT_EQ(ReplayStoreWriter(store(), 0, kProvenance).resume_unit(), 3);
}

TEST_F(ReplayStoreTest, ManyTinySamplesShareShards) {
  {
    ReplayStoreWriter writer(store(), 0, kProvenance);
    for (std::uint64_t id = 0; id < 20000; ++id) writer.append(random_records(id, 1, 5000, 3));
    EXPECT_GT(writer.open_ids(), 20000);
    writer.commit(1);
    EXPECT_EQ(writer.open_ids(), 0);
    EXPECT_EQ(writer.shards().size(), 1u);
    EXPECT_LT(writer.shards()[0].bytes, 20000 * 30);
  }
  finish_store(store(), kProvenance, 1, "{}");
  const ReplayStoreReader reader(store());
  EXPECT_TRUE(same_records(reader.read(12345), random_records(12345, 1, 5000, 3)));
}

TEST_F(ReplayStoreTest, EqualContentGivesEqualFiles) {
  collect(0, 1, 4);
  const auto first = read_text_file(store() / "shard-r0000-000001.h5", ErrorKind::kData);
  fs::remove_all(store());
  collect(0, 1, 4);
  EXPECT_EQ(read_text_file(store() / "shard-r0000-000001.h5", ErrorKind::kData), first);
}

TEST_F(ReplayStoreTest, UnitsThatAPeerLostAreRedoneWithoutEffect) {
  collect(0, 1, 4);
  {
    ReplayStoreWriter writer(store(), 0, kProvenance, 1);
    EXPECT_EQ(writer.resume_unit(), 4);
    for (std::int64_t unit = 2; unit < 6; ++unit) collect_unit(writer, unit), writer.commit(unit + 1);
    EXPECT_EQ(writer.resume_unit(), 6);
  }
  finish_store(store(), kProvenance, 1, "{}");
  expect_whole(24);
}

TEST_F(ReplayStoreTest, EveryStateThatAKillCanLeave) {
  collect(0, 1, 3);
  {  // a shard is whole and journaled, but its unit is not
    ReplayStoreWriter writer(store(), 0, kProvenance);
    for (std::int64_t unit = 3; unit < 5; ++unit) collect_unit(writer, unit);
    writer.commit(3);  // not new: finishes the shard, no line for the unit
  }
  EXPECT_TRUE(fs::exists(store() / "shard-r0000-000002.h5"));
  write_file_atomically(store() / "shard-r0000-000003.h5", "renamed, but not journaled");
  std::ofstream(store() / "shard-r0000-000004.h5.part") << "half a shard";
  std::ofstream(store() / "journal-r0000.jsonl", std::ios::app) << R"({"file": "shard-r0000-0000)";  // torn line
  std::ofstream(store() / "shard-r0001-000000.h5.part") << "another writer's";

  collect(0, 1, 6);
  EXPECT_TRUE(fs::exists(store() / "shard-r0001-000000.h5.part"));
  fs::remove(store() / "shard-r0001-000000.h5.part");
  finish_store(store(), kProvenance, 1, "{}");
  expect_whole(24);
}

TEST_F(ReplayStoreTest, NothingCountsBeforeItsCommit) {
  {
    ReplayStoreWriter writer(store(), 0, kProvenance);
    collect_unit(writer, 0);
  }
  EXPECT_EQ(names(), std::vector<std::string>{"journal-r0000.jsonl"});
  EXPECT_EQ(ReplayStoreWriter(store(), 0, kProvenance).resume_unit(), 0);
}

TEST_F(ReplayStoreTest, AnotherProvenanceIsNamed) {
  collect(0, 1, 2);
  StoreProvenance other = kProvenance;
  other["tau"] = "0.9";
  const auto refused = [&](const StoreProvenance& provenance, const std::vector<std::string>& parts, int writer) {
    expect_error(ErrorKind::kStoreMismatch, parts, [&] { ReplayStoreWriter(store(), writer, provenance); });
  };
  refused(other, {"tau", "\"0.95\"", "\"0.9\""}, 0);
  refused(other, {"tau", "\"0.95\"", "\"0.9\""}, 1);  // whose own journal is not there yet
  expect_error(ErrorKind::kStoreMismatch, {"num_writers", "by 1 ranks", "has 3"},
               [&] { ReplayStoreWriter(store(), 1, kProvenance, 3); });
  expect_error(ErrorKind::kStoreMismatch, {"tau"}, [&] { finish_store(store(), other, 1, "{}"); });
  finish_store(store(), kProvenance, 1, "{}");
  refused(other, {"tau"}, 2);

  const ReplayStoreReader reader(store());
  reader.require_provenance(kProvenance);
  reader.require_provenance({{"seed", "1"}});
  other["data"] = "d";
  expect_error(ErrorKind::kStoreMismatch,
               {"data: the store has nothing, this run \"d\"", "tau: the store has \"0.95\""},
               [&] { reader.require_provenance(other); });
}

TEST_F(ReplayStoreTest, IncompleteStoresAreRefused) {
  expect_error(ErrorKind::kData, {"store", "run collect again"}, [&] { ReplayStoreReader reader(store()); });
  collect(0, 2, 4);
  expect_error(ErrorKind::kData, {"run collect again"}, [&] { ReplayStoreReader reader(store()); });
  EXPECT_EQ(verify_store(store()).size(), 1u);
  expect_error(ErrorKind::kData, {"writer 1 is not done"}, [&] { finish_store(store(), kProvenance, 2, "{}"); });
  collect(1, 2, 4);
  expect_error(ErrorKind::kStoreMismatch, {"num_writers"}, [&] { finish_store(store(), kProvenance, 1, "{}"); });
  finish_store(store(), kProvenance, 2, "{}");
  fs::remove(store() / "shard-r0001-000000.h5");
  expect_error(ErrorKind::kData, {"shard-r0001-000000.h5", "no such file"}, [&] { ReplayStoreReader reader(store()); });
}

TEST_F(ReplayStoreTest, RecordsThatNoStoreMayHold) {
  ReplayStoreWriter writer(store(), 0, kProvenance);
  const auto refused = [&](const std::string& part, const auto& change) {
    SampleRecords records = random_records(3, 6, 5000, 20);
    change(records);
    expect_error(ErrorKind::kInternal, {"sample 3", part},
                 [&] { ReplayStoreWriter(store(), 0, kProvenance).append(records); });
  };
  refused("position 2 behind 2", [](SampleRecords& r) { r.position[2] = r.position[1]; });
  refused("is empty", [](SampleRecords& r) { r.id_begin[1] = 0; });
  refused("id 7 behind 7", [](SampleRecords& r) { r.ids = {7, 7}, r.id_begin = {0, 2, 2, 2, 2, 2, 2}; });
  refused("gold 5001 is not in its set", [](SampleRecords& r) { r.gold[5] = 5001; });
  refused("vocabulary of 5000", [](SampleRecords& r) { r.ids.back() = 5000; });
  refused("probability", [](SampleRecords& r) { r.mass[0] = -0.1f; });
  refused("confidence", [](SampleRecords& r) { r.confidence[3] = 1.5f; });
  refused("do not fit together", [](SampleRecords& r) { r.flags.pop_back(); });
  refused("do not fit together", [](SampleRecords& r) { r.log_prob = {0.0f}; });
  writer.append(random_records(3, 6, 5000, 20));
  expect_error(ErrorKind::kInternal, {"sample 3 is appended twice"},
               [&] { writer.append(random_records(3, 6, 5000, 20)); });
  expect_error(ErrorKind::kInternal, {"some samples only"},
               [&] { writer.append(random_records(4, 6, 5000, 20, true)); });
}

}  // namespace
}  // namespace reprise
